"""Plain fine-tuning (Devlin et al., NAACL 2019): the whole network with its last exit, the tables' speed-up of 1."""

from __future__ import annotations

import dataclasses

from leebert.config import TrainConfig
from leebert.objective import ExitObjective
from leebert.optim import Fixed
from leebert.stages import Stage
from leebert.transforms import KeepExits


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """One stage, in which only the last exit is left."""
    return (one_exit(num_exits),)


def one_exit(depth: int) -> Stage:
    """The stage in which a network of so many layers is fine-tuned for its last exit alone."""
    return Stage("finetune", ExitObjective.weighted([1.0]), Fixed(), transform=KeepExits((depth,)))


def teacher(config: TrainConfig, depth: int) -> Stage:
    """The same as the first stage of a method that goes on from its outcome."""
    return dataclasses.replace(one_exit(depth), epochs=config.first_epochs, stops_early=False)
