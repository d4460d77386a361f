"""A method is a list of stages; a stage says what trains, on which objective, how and for how long."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch

from leebert.config import TrainConfig
from leebert.objective import ExitObjective, Objective
from leebert.optim import ALGORITHMS, Algorithm


def everything(name: str) -> bool:
    """The `trains` of a stage in which every parameter learns."""
    return True


#: Makes θ's optimiser from its parameters and λ1.
MakeOptimizer = Callable[[Iterable[torch.nn.Parameter], float, TrainConfig], torch.optim.Optimizer]
#: The factor on λ1 for an update (from 0), of all updates, with a share of warm-up.
Schedule = Callable[[int, int, float], float]


def adamw(parameters: Iterable[torch.nn.Parameter], lr: float, config: TrainConfig) -> torch.optim.Optimizer:
    """The paper's Adam for text; weight decay as configured."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=config.weight_decay, fused=True)


def sgd(parameters: Iterable[torch.nn.Parameter], lr: float, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD for images, with momentum and without Nesterov's (He et al. 2015, section 4.2)."""
    return torch.optim.SGD(parameters, lr=lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True)


def linear(step: int, total: int, warmup: float) -> float:
    """Factor on λ1 for update `step` (from 0) of `total`: linear warm-up over a share of them, then linear decay to 0."""
    rising = round(total * warmup)
    if step < rising:
        return (step + 1) / (rising + 1)
    return (total - step) / max(1, total - rising)


#: Shares of the updates after which λ1 falls to a tenth: epochs 35, 60 and 85 of Shallow-Deep's 100.
FALLS = (0.35, 0.6, 0.85)


def steps(step: int, total: int, warmup: float) -> float:
    """Factor on λ1 for update `step` (from 0) of `total`: linear warm-up, then to a tenth at each of :data:`FALLS`."""
    rising = round(total * warmup)
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.1 ** sum(step >= fall * total for fall in FALLS)


#: By the names that stand in a configuration.
OPTIMIZERS: dict[str, MakeOptimizer] = {"adamw": adamw, "sgd": sgd}
SCHEDULES: dict[str, Schedule] = {"linear": linear, "steps": steps}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a method.

    name: unique within the method; it stands in reports and checkpoints.
    objective, algorithm: what is minimised and how ω is learned.
    trains: which parameters learn, by their name in the model; the others are frozen for this stage, and so are the
        running statistics whose names it excludes.
    epochs: its length and the horizon of its schedule; None is the configuration's `max_epochs`.
    lr_theta: its λ1; None is the configuration's.
    transform: changes or replaces the model before the stage starts (pruning, say).
    optimizer, schedule: of θ and of λ1; None is the configuration's. ω's optimiser is always the configuration's.
    """

    name: str
    objective: Objective
    algorithm: Algorithm
    trains: Callable[[str], bool] = everything
    epochs: int | None = None
    lr_theta: float | None = None
    transform: Callable[[torch.nn.Module], torch.nn.Module] | None = None
    optimizer: MakeOptimizer | None = None
    schedule: Schedule | None = None


Method = Callable[[TrainConfig, int], tuple[Stage, ...]]


def leebert(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """LeeBERT and its rivals of the same family: one stage in which θ and ω learn together."""
    return (Stage("joint", ExitObjective.of(config, num_exits), ALGORITHMS[config.algorithm](config)),)


#: Methods by the name that stands under `algorithm` in a configuration.
METHODS: dict[str, Method] = dict.fromkeys(ALGORITHMS, leebert)


def method(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """The stages of the method that a configuration names, for a model with M exits."""
    return METHODS[config.algorithm](config, num_exits)
