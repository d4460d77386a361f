"""A method is a list of stages; a stage says what trains, on which objective, how, for how long, and who teaches."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch

from leebert.config import TrainConfig
from leebert.errors import ConfigError
from leebert.methods import METHODS, applies
from leebert.objective import ExitObjective, Objective
from leebert.optim.contract import OmegaOptimizer
from leebert.optim.fixed import Fixed
from leebert.record import Batch
from leebert.runtime import Runtime

#: Makes θ's optimiser from its parameters and λ1.
MakeOptimizer = Callable[[Iterable[torch.nn.Parameter], float, TrainConfig], torch.optim.Optimizer]
#: The factor on λ1 for an update (from 0), of all updates, with a share of warm-up.
Schedule = Callable[[int, int, float], float]


def everything(name: str) -> bool:
    """The `trains` of a stage in which every parameter learns."""
    return True


def of_exit(name: str) -> int | None:
    """The exit (from 0) that a parameter belongs to, None for the network below the exits."""
    part, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return int(number) if part == "heads" and number.isdigit() else None


def exits_only(name: str, *, but: int | None = None) -> bool:
    """The `trains` of a stage in which the network is frozen, and perhaps one exit with it."""
    exit_ = of_exit(name)
    return exit_ is not None and exit_ != but


def below_and_exit(name: str, exit_: int) -> bool:
    """The `trains` of a stage in which the network and one of its exits learn."""
    return of_exit(name) in (None, exit_)


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
class Examined:
    """What a transformation may look at before it decides: the training rows in batches, and how they are run.

    Forward and backward take a batch in `accumulate` parts.
    """

    batches: Callable[[], Iterator[Batch]]
    runtime: Runtime
    accumulate: int = 1


class Transform(Protocol):
    """What becomes of the model when a stage begins.

    The decision is apart from its execution, so that a run which is resumed makes the same model without the data that
    the decision was made on: plans are kept in checkpoints.
    """

    def check(self, model: Any) -> None:
        """Raises ConfigError where the model has not what this takes; asked before any training."""
        ...

    def plan(self, model: Any, examined: Examined | None) -> Any:
        """What is to be done, as JSON-ready values. Without data: any plan that leads to the same shapes."""
        ...

    def apply(self, model: Any, plan: Any) -> Any:
        """The model after it: the same one, changed, or another."""
        ...


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a method.

    name: unique within the method; it stands in reports and checkpoints.
    objective, algorithm: what is minimised and how ω is learned.
    trains: which parameters learn, by their name in the model; the others are frozen for this stage, and so are the
        running statistics whose names it excludes.
    epochs: its length and the horizon of its schedule; None is the configuration's `max_epochs`; 0: it only evaluates.
    lr_theta: its λ1; None is the configuration's.
    transform: changes or replaces the model before the stage starts (pruning, say).
    teacher: an earlier stage, whose model at its end teaches, frozen and without dropout; None: nobody but the exits.
    pair: called with model and teacher before the stage's first update.
    pace: called with the model and the share of the stage's updates done, before each.
    stops_early: whether it ends after `patience` epochs without a better mean over exits.
    optimizer: of θ; None is the configuration's, of which ω's always is.
    """

    name: str
    objective: Objective
    algorithm: OmegaOptimizer
    trains: Callable[[str], bool] = everything
    epochs: int | None = None
    lr_theta: float | None = None
    transform: Transform | None = None
    teacher: str | None = None
    pair: Callable[[Any, Any], None] | None = None
    pace: Callable[[Any, float], None] | None = None
    stops_early: bool = True
    optimizer: MakeOptimizer | None = None

    def shape(self, model: Any) -> Any:
        """The model that the stage starts with, from that before it, in all but what only data decides: its shapes."""
        return self.transform.apply(model, self.transform.plan(model, None)) if self.transform else model


def joint(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """LeeBERT and the baselines of its family: one stage on eq. 5 in which θ and ω learn together."""
    made = Stage("joint", ExitObjective.of(config, num_exits), omega_optimizer(config))
    return after_finetuning(config, num_exits, made)


def omega_optimizer(config: TrainConfig) -> OmegaOptimizer:
    """The optimiser of ω of the method that a configuration names, for a stage on eq. 5."""
    make = METHODS[config.algorithm].omega
    optimizer: OmegaOptimizer = Fixed() if make is None else make(config)
    return optimizer


def after_finetuning(config: TrainConfig, num_exits: int, *stages: Stage) -> tuple[Stage, ...]:
    """The stages, where asked for behind one that fine-tunes for the last exit (Kubaty et al., 2025: mixed training)."""
    return (finetuning(config, num_exits), *stages) if config.finetune_first else stages


def finetuning(config: TrainConfig, num_exits: int) -> Stage:
    """The network and its last exit of `num_exits`, on the labels; the other exits stay as they are."""
    last = num_exits - 1
    return Stage(
        "finetune",
        ExitObjective.weighted([float(m == last) for m in range(num_exits)]),
        Fixed(),
        trains=functools.partial(below_and_exit, exit_=last),
        epochs=config.first_epochs,
        stops_early=False,
    )


def method(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """The stages of the method that a configuration names, for a model with M exits."""
    stages: tuple[Stage, ...] = (METHODS[config.algorithm].stages or joint)(config, num_exits)
    return stages


def check(stages: Iterable[Stage], model: Any, config: TrainConfig) -> None:
    """Raises ConfigError where a model has not what a stage takes; before any training."""
    names, known = [name for name, _ in model.named_parameters()], True
    for stage in stages:
        if stage.transform:
            stage.transform.check(model)
            known = False  # what parameters are called after it, it alone could say
        if known and stage.epochs != 0 and not any(stage.trains(name) for name in names):
            raise ConfigError(
                f"{config.algorithm}: its stage {stage.name!r} would train nothing of a {type(model).__name__} with "
                f"{model.num_exits} exit(s); take a model with more exits, or another method"
            )
        if balances(model, stage, config) and not hasattr(model, "gradient_equilibrium"):
            raise ConfigError(f"gradient_equilibrium: {type(model).__name__} can't do it; leave the option out")


def balances(model: Any, stage: Stage, config: TrainConfig) -> bool:
    """Whether gradients are to be balanced between the exits of a stage: not where one alone trains."""
    exits = {of_exit(name) for name, _ in model.named_parameters() if stage.trains(name)} - {None}
    return config.gradient_equilibrium and applies("gradient_equilibrium", config.algorithm) and len(exits) > 1


def epochs_of(stages: tuple[Stage, ...], config: TrainConfig) -> list[int]:
    """The longest that each stage can take."""
    return [config.max_epochs if stage.epochs is None else stage.epochs for stage in stages]


def shared_epochs(config: TrainConfig, stages: int) -> list[int]:
    """`max_epochs`, shared among so many stages as evenly as it goes; at least one each, which may be more in all."""
    ends = [config.max_epochs * stage // stages for stage in range(stages + 1)]
    return [max(1, end - start) for start, end in itertools.pairwise(ends)]


def last_training(longest: Sequence[int]) -> int:
    """The last stage that trains, by the longest that each can take: whose updates a best file counts."""
    return max(i for i, epochs in enumerate(longest) if epochs)
