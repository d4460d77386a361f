"""When a row leaves: one file per rule. State is passed and returned; nothing is kept in the model.

A strategy sees the exits one after the other, (B, K) logits at a time, and says which rows leave there. Inference
that stops computing and the replay of recorded logits run the same function, so they can't disagree.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from leebert.config import ExitConfig
from leebert.errors import ConfigError
from leebert.exits.beem import BEEM
from leebert.exits.confidence import Confidence
from leebert.exits.entropy import Entropy
from leebert.exits.fpabee import FPABEE
from leebert.exits.never import Never
from leebert.exits.patience import Patience
from leebert.exits.pcee import PCEE
from leebert.rules import RULES, without_patience

__all__ = [
    "BEEM",
    "FPABEE",
    "PCEE",
    "STRATEGIES",
    "Confidence",
    "Entropy",
    "Measured",
    "Never",
    "Patience",
    "Strategy",
    "check_classes",
    "check_rule",
    "check_threshold",
    "leaving",
    "make_strategy",
    "measured",
    "replay",
    "threshold_and_patience",
    "warn_if_unreachable",
]

#: A strategy's memory of each row still in the model: tensors whose first dimension is the row, or None.
State = Any


class Strategy(Protocol):
    """One rule for leaving."""

    def step(self, logits: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """(B, K) logits of the next exit and the state left by the last one (None at the first) → who leaves, (B,) bool."""
        ...


class Measured(Strategy, Protocol):
    """A rule that compares a real number with its threshold."""

    def measure(self, logits: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """As `step`, with a state of its own → that number, (B,) float32; it doesn't depend on the threshold."""
        ...


def check_rule(strategy: str, patience: int | None, num_exits: int) -> None:
    """Raises ConfigError for a patience of a rule without one, and where M exits are too few for a rule: one, where it
    compares exits, or no more than its patience."""
    if patience is not None and (problem := without_patience(strategy)):
        raise ConfigError(problem)
    rule = RULES.get(strategy)
    if rule is None:
        return
    if rule.several and num_exits < 2:
        others = ", ".join(r.name for r in RULES.values() if not r.several)
        raise ConfigError(
            f"strategy {strategy!r} compares successive exits, and this model has one exit: use never, or one of {others}"
        )
    if patience is not None and patience >= num_exits:
        raise ConfigError(
            f"patience {patience} of {strategy}: this model has {num_exits} exits, so it lies between 1 and {num_exits - 1}"
        )


def check_classes(strategy: str, num_classes: int) -> None:
    """Raises ConfigError where a model has one output per exit and the rule compares classes: all but never."""
    if num_classes < 2 and strategy in RULES:
        raise ConfigError(
            f"strategy {strategy!r} compares classes, and this model has one output per exit, as a regression has: use never"
        )


def check_threshold(exits: ExitConfig, num_exits: int, num_classes: int) -> None:
    """Raises ConfigError where a model of M exits and K classes has no use for a rule, its patience or its threshold."""
    check_classes(exits.strategy, num_classes)
    check_rule(exits.strategy, exits.patience, num_exits)
    if exits.threshold is not None:
        problem = RULES[exits.strategy].problem(exits.threshold, num_exits, num_classes)
        if problem is not None:
            raise ConfigError(problem)


def warn_if_unreachable(exits: ExitConfig, num_exits: int) -> None:
    """Warn where no row can meet a rule before the last exit: a patience, or a sum over exits, that is too high for M."""
    rule = RULES.get(exits.strategy)
    if rule is None or not rule.several:
        return
    threshold, patience = threshold_and_patience(exits.strategy, exits.threshold, exits.patience, num_exits)
    if not rule.rising and threshold > rule.span(num_exits - 1, math.inf)[1]:
        what = f"{rule.name} {threshold:g}"
    elif rule.first(patience) >= num_exits:
        what = f"patience {patience} of {rule.name}"
    else:
        return
    warnings.warn(
        f"{what} can't be reached before the last of {num_exits} exits: no row will leave early", stacklevel=2
    )


#: From the threshold, the patience (1 for rules without one) and the number of classes.
STRATEGIES: dict[str, Callable[[float, int, int], Strategy]] = {
    "patience": lambda threshold, patience, classes: Patience(int(threshold)),
    "entropy": lambda threshold, patience, classes: Entropy(threshold),
    "normalised_entropy": lambda threshold, patience, classes: Entropy.normalised(threshold, classes),
    "confidence": lambda threshold, patience, classes: Confidence(threshold),
    "pcee": lambda threshold, patience, classes: PCEE(Entropy.normalised(threshold, classes), patience),
    "f-pabee": lambda threshold, patience, classes: FPABEE(threshold, patience),
    "beem": lambda threshold, patience, classes: BEEM(threshold),
    "never": lambda threshold, patience, classes: Never(),
}


def make_strategy(
    name: str, threshold: float | None, patience: int | None = None, *, num_exits: int, num_classes: int
) -> Strategy:
    """The strategy of that name; None takes a parameter's default (`leebert.rules`). Raises ValueError out of range."""
    exits = ExitConfig.model_validate({"strategy": name, "threshold": threshold, "patience": patience})
    own = threshold_and_patience(name, exits.threshold, exits.patience, num_exits)
    return STRATEGIES[name](*own, num_classes)


def threshold_and_patience(
    strategy: str, threshold: float | None, patience: int | None, num_exits: int
) -> tuple[float, int]:
    """Threshold and patience, with the rule's defaults; 0 and 1 where it has none. Takes values that are checked."""
    rule = RULES.get(strategy)
    if rule is None:
        return 0.0, 1
    if threshold is None:
        assert rule.default is not None  # ExitConfig wants a threshold else
        threshold = rule.default(num_exits)
    return threshold, rule.counted(patience, num_exits) or 1


def _tensor(logits: np.ndarray) -> torch.Tensor:
    """Logits that may be a view of a file opened for reading, of whose memory torch would warn."""
    return torch.from_numpy(np.require(logits, requirements="W"))


def measured(strategy: Measured, logits: np.ndarray) -> np.ndarray:
    """What a strategy compares with its threshold, from recorded logits (M, N, K) → (M, N) float32."""
    values, state = [], None
    for at_exit in _tensor(logits):
        value, state = strategy.measure(at_exit, state)
        values.append(value)
    return torch.stack(values).numpy()


def leaving(strategy: Strategy, logits: torch.Tensor) -> torch.Tensor:
    """Where each row leaves, from all exits' logits (M, N, K) → (N,) exit index from 0; the last exit answers the rest."""
    exits = logits.unbind(0)  # M is a number, N stays a size that an exported model may change
    last = len(exits) - 1
    exit_index = torch.full_like(exits[0][:, 0], last, dtype=torch.int64)
    state: State = None
    for exit_, at_exit in enumerate(exits[:-1]):
        leaves, state = strategy.step(at_exit, state)
        exit_index = torch.where(leaves & (exit_index == last), exit_, exit_index)
    return exit_index


def replay(strategy: Strategy, logits: np.ndarray) -> np.ndarray:
    """As :func:`leaving`, from recorded logits."""
    return leaving(strategy, _tensor(logits)).numpy()
