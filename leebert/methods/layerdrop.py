"""LayerDrop (Fan et al., ICLR 2020): training skips layers at random, so that inference works with fewer.

Inference keeps evenly spaced layers for every task, as in the original.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from leebert.methods.method import Method

if TYPE_CHECKING:
    from leebert.config import TrainConfig
    from leebert.stages import Stage


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """Make stage 1, which trains under random skipping, and stage 2, which keeps `keep` of the layers, untrained."""
    from leebert.objective import ExitObjective
    from leebert.optim.fixed import Fixed
    from leebert.stages import Stage
    from leebert.transforms import KeepLayers, SkipLayers, spaced_layers

    one = ExitObjective.weighted([1.0])
    skipping = SkipLayers(config.layerdrop)
    kept = KeepLayers(spaced_layers(num_exits, config.keep))
    return (
        Stage("layerdrop", one, Fixed(), transform=skipping, stops_early=False),
        Stage("kept", one, Fixed(), transform=kept, epochs=0),
    )


def costs(config: TrainConfig) -> list[tuple[int, float]]:
    """Count both stages; the second only evaluates."""
    return [(config.max_epochs, 1 - config.layerdrop), (0, config.keep)]


METHOD = Method(
    name="layerdrop",
    title="LayerDrop",
    label="LayerDrop",
    group="static",
    source="Fan et al., ICLR 2020",
    trains="all parameters, with layers that are skipped at random; inference runs evenly spaced layers only",
    exits="never",
    cost="1 − `layerdrop`",
    differs=(
        "layers are skipped in fine-tuning only, not in pretraining; `keep` sets the share of layers that "
        "inference keeps (the original: every second); with shared layers (ALBERT) applications are skipped and "
        "all parameters stay"
    ),
    options=frozenset({"keep", "layerdrop"}),
    stages=stages,
    costs=costs,
    colour="#4d8c77",
)
