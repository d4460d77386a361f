"""Fine-tuning of the first layers alone (Sun et al., EMNLP 2019; Sajjad et al., 2020): 6L and 9L in the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leebert.methods.method import Method

if TYPE_CHECKING:
    from leebert.config import TrainConfig
    from leebert.stages import Stage


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """Make one stage on the first `keep` of the layers."""
    from leebert.objective import ExitObjective
    from leebert.optim.fixed import Fixed
    from leebert.stages import Stage
    from leebert.transforms import KeepLayers, first_layers

    kept = KeepLayers(first_layers(num_exits, config.keep))
    return (Stage("finetune", ExitObjective.weighted([1.0]), Fixed(), transform=kept),)


def costs(config: TrainConfig) -> list[tuple[int, float]]:
    """Count its one stage, on a share of the layers."""
    return [(config.max_epochs, config.keep)]


METHOD = Method(
    name="truncated",
    title="first layers",
    label="First layers",
    group="static",
    source="Sun et al., EMNLP 2019; Sajjad et al., 2020",
    trains="only the first layers (`keep`: their share of all layers), with one exit on top",
    exits="never",
    cost="`keep`",
    differs=(
        "`keep` is a share of the depth, to fit encoders of any depth; with shared layers (ALBERT) they are "
        "applied less often and all parameters stay"
    ),
    options=frozenset({"keep"}),
    stages=stages,
    costs=costs,
    titled_by_layers=True,
    colour="#69bfa3",
)
