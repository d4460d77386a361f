"""LayerDrop (Fan et al., ICLR 2020): layers are skipped at random in training, so that fewer do at inference.

Which layers are kept does not depend on the task: evenly spaced ones, as in the original.
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
    """Count both stages; the layers that are kept are only evaluated."""
    return [(config.max_epochs, 1 - config.layerdrop), (0, config.keep)]


METHOD = Method(
    name="layerdrop",
    title="LayerDrop",
    label="LayerDrop",
    group="static",
    source="Fan et al., ICLR 2020",
    trains="everything, layers skipped at random; evenly spaced ones are kept",
    exits="never",
    cost="1 − layerdrop",
    differs=(
        "layers are skipped in fine-tuning alone, since nothing is pretrained here; the original skips them in "
        "pretraining, too; `keep` sets how many stay, every second one in the original; shared layers (ALBERT): "
        "applications are skipped, no parameter goes"
    ),
    options=frozenset({"keep", "layerdrop"}),
    stages=stages,
    costs=costs,
    colour="#4d8c77",
)
