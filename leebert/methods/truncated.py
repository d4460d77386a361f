"""The first layers alone, fine-tuned (Sun et al., EMNLP 2019; Sajjad et al., 2020): the tables' 6L and 9L."""

from __future__ import annotations

from leebert.config import TrainConfig
from leebert.objective import ExitObjective
from leebert.optim import Fixed
from leebert.stages import Stage
from leebert.transforms import KeepLayers, first_layers


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """One stage on the first `keep` of the layers."""
    kept = KeepLayers(first_layers(num_exits, config.keep))
    return (Stage("finetune", ExitObjective.weighted([1.0]), Fixed(), transform=kept),)
