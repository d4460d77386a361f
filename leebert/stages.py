"""A method is a list of stages; a stage says what trains, on which objective, how and for how long."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from leebert.config import TrainConfig
from leebert.objective import ExitObjective, Objective
from leebert.optim import ALGORITHMS, Algorithm


def everything(name: str) -> bool:
    """The `trains` of a stage in which every parameter learns."""
    return True


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a method.

    name: unique within the method; it stands in reports and checkpoints.
    objective, algorithm: what is minimised and how ω is learned.
    trains: which parameters learn, by their name in the model; the others are frozen for this stage.
    epochs: its length and the horizon of its schedule; None is the configuration's `max_epochs`.
    lr_theta: its λ1; None is the configuration's.
    transform: changes or replaces the model before the stage starts (pruning, say).
    """

    name: str
    objective: Objective
    algorithm: Algorithm
    trains: Callable[[str], bool] = everything
    epochs: int | None = None
    lr_theta: float | None = None
    transform: Callable[[torch.nn.Module], torch.nn.Module] | None = None


Method = Callable[[TrainConfig, int], tuple[Stage, ...]]


def leebert(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """LeeBERT and its rivals of the same family: one stage in which θ and ω learn together."""
    return (Stage("joint", ExitObjective.of(config, num_exits), ALGORITHMS[config.algorithm](config)),)


#: Methods by the name that stands under `algorithm` in a configuration.
METHODS: dict[str, Method] = dict.fromkeys(ALGORITHMS, leebert)


def method(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """The stages of the method that a configuration names, for a model with M exits."""
    return METHODS[config.algorithm](config, num_exits)
