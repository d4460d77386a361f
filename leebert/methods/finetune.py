"""Plain fine-tuning (Devlin et al., NAACL 2019): the whole network with its last exit, the tables' speed-up of 1."""

from __future__ import annotations

import dataclasses

from leebert.config import TrainConfig
from leebert.objective import ExitObjective
from leebert.optim import Fixed
from leebert.stages import Stage
from leebert.transforms import LastExit


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """One stage, in which only the last exit is left."""
    return (one_exit(),)


def one_exit() -> Stage:
    """The stage in which a network is fine-tuned for its last exit alone."""
    return Stage("finetune", ExitObjective.weighted([1.0]), Fixed(), transform=LastExit())


def first_stage(config: TrainConfig) -> Stage:
    """The same as the first stage of a method that goes on from its outcome."""
    return dataclasses.replace(one_exit(), epochs=config.first_epochs, stops_early=False)
