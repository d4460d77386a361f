"""Plain fine-tuning (Devlin et al., NAACL 2019): the whole network with its last exit, the tables' speed-up of 1."""

from __future__ import annotations

from leebert.config import TrainConfig
from leebert.objective import ExitObjective
from leebert.optim import Fixed
from leebert.stages import KeepExits, Stage


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """One stage, in which only the last exit is left."""
    return (Stage("finetune", ExitObjective.weighted([1.0]), Fixed(), transform=KeepExits((num_exits,))),)
