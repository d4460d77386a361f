"""The stages of a method: what is trained, on which objective, for how long, and with which teacher."""

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
#: Maps (update from 0, number of updates, share of warm-up) to the factor on λ1.
Schedule = Callable[[int, int, float], float]


def everything(name: str) -> bool:
    """Select every parameter, as `trains` of a stage."""
    return True


def of_exit(name: str) -> int | None:
    """Return the exit (from 0) of a parameter; None for parameters of the network below the exits."""
    part, _, inner = name.partition(".")
    number = inner.partition(".")[0]
    return int(number) if part == "heads" and number.isdigit() else None


def exits_only(name: str, *, but: int | None = None) -> bool:
    """Select the exits, as `trains` of a stage; the network is frozen.

    Args:
        name: Name of a parameter.
        but: An exit, from 0, that is frozen too; None: all exits train.

    Returns:
        Whether the parameter trains.
    """
    exit_ = of_exit(name)
    return exit_ is not None and exit_ != but


def below_and_exit(name: str, exit_: int) -> bool:
    """Select the network and one exit, as `trains` of a stage.

    Args:
        name: Name of a parameter.
        exit_: The exit that trains, from 0.

    Returns:
        Whether the parameter trains.
    """
    return of_exit(name) in (None, exit_)


def adamw(parameters: Iterable[torch.nn.Parameter], lr: float, config: TrainConfig) -> torch.optim.Optimizer:
    """Make the paper's Adam for text, with the configured (decoupled) weight decay.

    Args:
        parameters: The parameters that train.
        lr: λ1.
        config: Configuration with `weight_decay`.

    Returns:
        The optimiser of θ.
    """
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=config.weight_decay, fused=True)


def sgd(parameters: Iterable[torch.nn.Parameter], lr: float, config: TrainConfig) -> torch.optim.Optimizer:
    """Make SGD for images, with momentum but not Nesterov's (He et al. 2015, section 4.2).

    Args:
        parameters: The parameters that train.
        lr: λ1.
        config: Configuration with `momentum` and `weight_decay`.

    Returns:
        The optimiser of θ.
    """
    return torch.optim.SGD(parameters, lr=lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True)


def linear(step: int, total: int, warmup: float) -> float:
    """Compute the factor on λ1: linear warm-up, then linear decay to 0.

    Args:
        step: The update, from 0.
        total: Number of updates of the stage.
        warmup: Share of the updates in which λ1 rises, in [0, 1].

    Returns:
        The factor, in (0, 1].
    """
    rising = round(total * warmup)
    if step < rising:
        return (step + 1) / (rising + 1)
    return (total - step) / max(1, total - rising)


#: Shares of the updates after which λ1 falls to a tenth: epochs 35, 60 and 85 of Shallow-Deep's 100.
FALLS = (0.35, 0.6, 0.85)


def steps(step: int, total: int, warmup: float) -> float:
    """Compute the factor on λ1: linear warm-up, then a fall to a tenth at each of :data:`FALLS`.

    Args:
        step: The update, from 0.
        total: Number of updates of the stage.
        warmup: Share of the updates in which λ1 rises, in [0, 1].

    Returns:
        The factor, in (0, 1].
    """
    rising = round(total * warmup)
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.1 ** sum(step >= fall * total for fall in FALLS)


#: By their names in configurations.
OPTIMIZERS: dict[str, MakeOptimizer] = {"adamw": adamw, "sgd": sgd}
SCHEDULES: dict[str, Schedule] = {"linear": linear, "steps": steps}


@dataclasses.dataclass(frozen=True)
class Examined:
    """The training samples that a transformation can examine before it decides.

    Attributes:
        batches: Iterates over the training samples in batches.
        runtime: Device and precision.
        accumulate: Parts of a batch in forward and backward.
    """

    batches: Callable[[], Iterator[Batch]]
    runtime: Runtime
    accumulate: int = 1


class Transform(Protocol):
    """A change of the model at the start of a stage.

    The plan is separate from its execution, and checkpoints hold the plan. So a resumed run makes the same model without
    the data that the plan was made from.
    """

    def check(self, model: Any) -> None:
        """Refuse a model that does not support the change; called before training.

        Args:
            model: The model before the first stage.

        Raises:
            ConfigError: The model does not support the change.
        """
        ...

    def plan(self, model: Any, examined: Examined | None) -> Any:
        """Decide on the change.

        Args:
            model: The model before the stage; it stays as it is.
            examined: Training samples; None: return any plan with the same resulting shapes.

        Returns:
            The plan, as JSON-ready values.
        """
        ...

    def apply(self, model: Any, plan: Any) -> Any:
        """Change the model as planned.

        Args:
            model: The model before the stage.
            plan: What :meth:`plan` returned.

        Returns:
            The model of the stage: the given one, changed in place, or a new one.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a method.

    Attributes:
        name: Name, unique within the method, used in reports and checkpoints.
        objective: The loss.
        algorithm: The optimiser of ω.
        trains: Whether a parameter trains, by its name in the model. The other parameters and running statistics are frozen.
        epochs: Length and horizon of the schedule; None: `max_epochs`; 0: the stage only evaluates.
        lr_theta: λ1; None: as configured.
        transform: Changes the model before the stage starts, such as pruning.
        teacher: Name of an earlier stage whose final model is the teacher, frozen and without dropout; None: no teacher
            besides the exits.
        pair: Called with model and teacher before the first update.
        pace: Called before each update with the model and the completed share of the stage's updates.
        stops_early: Whether the stage ends after `patience` epochs without a better mean over exits.
        optimizer: Optimiser of θ; None: as configured.
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
        """Make a model with the shapes of the stage's model, without data.

        Args:
            model: The model before the stage.

        Returns:
            The given model, changed in place, or a new one.
        """
        return self.transform.apply(model, self.transform.plan(model, None)) if self.transform else model


def joint(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """Make the stages of LeeBERT and related baselines: one stage on eq. 5 in which θ and ω learn together.

    Args:
        config: The configuration.
        num_exits: M.

    Returns:
        The stage, after one of fine-tuning with `finetune_first`.
    """
    stage = Stage("joint", ExitObjective.of(config, num_exits), omega_optimizer(config))
    return after_finetuning(config, num_exits, stage)


def omega_optimizer(config: TrainConfig) -> OmegaOptimizer:
    """Make the configured method's optimiser of ω, for a stage on eq. 5."""
    make = METHODS[config.algorithm].omega
    optimizer: OmegaOptimizer = Fixed() if make is None else make(config)
    return optimizer


def after_finetuning(config: TrainConfig, num_exits: int, *stages: Stage) -> tuple[Stage, ...]:
    """Prepend a stage that fine-tunes for the last exit if `finetune_first` is set (Kubaty et al., 2025: mixed training).

    Args:
        config: The configuration.
        num_exits: M.
        *stages: The stages after fine-tuning.

    Returns:
        All stages, in order.
    """
    return (finetuning(config, num_exits), *stages) if config.finetune_first else stages


def finetuning(config: TrainConfig, num_exits: int) -> Stage:
    """Make a stage that trains the network and its last exit on the labels; the other exits are frozen.

    Args:
        config: The configuration; `first_epochs` is the stage's length.
        num_exits: M.

    Returns:
        The stage `finetune`.
    """
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
    """Make the stages of the configured method.

    Args:
        config: The configuration.
        num_exits: M.

    Returns:
        The stages, in order.
    """
    stages: tuple[Stage, ...] = (METHODS[config.algorithm].stages or joint)(config, num_exits)
    return stages


def check(stages: Iterable[Stage], model: Any, config: TrainConfig) -> None:
    """Refuse a model that does not support a stage; called before training.

    Args:
        stages: The stages, in order.
        model: The model before the first stage.
        config: The configuration that the stages were made from.

    Raises:
        ConfigError: The model does not support a transformation or an option, or a stage would train no parameter.
    """
    names, final_names = [name for name, _ in model.named_parameters()], True
    for stage in stages:
        if stage.transform:
            stage.transform.check(model)
            final_names = False  # a transformation can rename parameters
        if final_names and stage.epochs != 0 and not any(stage.trains(name) for name in names):
            raise ConfigError(
                f"{config.algorithm}: its stage {stage.name!r} would train no parameter of a {type(model).__name__} with "
                f"{model.num_exits} exit(s); use a model with more exits, or another method"
            )
        if balances(model, stage, config) and not hasattr(model, "gradient_equilibrium"):
            raise ConfigError(f"gradient_equilibrium: {type(model).__name__} does not support it; omit the option")


def balances(model: Any, stage: Stage, config: TrainConfig) -> bool:
    """Return whether a stage uses gradient equilibrium: it is configured, and more than one exit trains.

    Args:
        model: The model of the stage.
        stage: The stage.
        config: The configuration.
    """
    exits = {of_exit(name) for name, _ in model.named_parameters() if stage.trains(name)} - {None}
    return config.gradient_equilibrium and applies("gradient_equilibrium", config.algorithm) and len(exits) > 1


def epochs_of(stages: tuple[Stage, ...], config: TrainConfig) -> list[int]:
    """Return the largest number of epochs of each stage.

    Args:
        stages: The stages, in order.
        config: The configuration; `max_epochs` is the default.
    """
    return [config.max_epochs if stage.epochs is None else stage.epochs for stage in stages]


def shared_epochs(config: TrainConfig, stages: int) -> list[int]:
    """Divide `max_epochs` evenly among stages; each gets at least one epoch, so the sum can be larger.

    Args:
        config: The configuration.
        stages: Number of stages.

    Returns:
        Epochs of each stage.
    """
    ends = [config.max_epochs * stage // stages for stage in range(stages + 1)]
    return [max(1, end - start) for start, end in itertools.pairwise(ends)]


def last_training(longest: Sequence[int]) -> int:
    """Return the index of the last stage that trains, whose updates a best file counts."""
    return max(i for i, epochs in enumerate(longest) if epochs)
