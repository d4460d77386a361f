"""The first layers alone, fine-tuned (Sun et al., EMNLP 2019; Sajjad et al., 2020): the tables' 6L and 9L."""

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
    trains="the first `keep` of the layers, for one exit",
    exits="never",
    cost="keep",
    differs=(
        "`keep` is a share, so that it fits any depth; shared layers (ALBERT) are applied less often, no parameter goes"
    ),
    options=frozenset({"keep"}),
    stages=stages,
    costs=costs,
    titled_by_layers=True,
    colour="#69bfa3",
)
