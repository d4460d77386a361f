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

from leebert.config import THRESHOLD_SLACK, ExitConfig
from leebert.errors import ConfigError
from leebert.exits.confidence import Confidence
from leebert.exits.entropy import Entropy
from leebert.exits.never import Never
from leebert.exits.patience import Patience

__all__ = [
    "STRATEGIES",
    "Confidence",
    "Entropy",
    "Never",
    "Patience",
    "Strategy",
    "check_threshold",
    "default_patience",
    "make_strategy",
    "replay",
    "warn_if_unreachable",
]

#: A strategy's memory of each row still in the model: tensors whose first dimension is the row, or None.
State = Any


class Strategy(Protocol):
    """One rule for leaving."""

    def step(self, logits: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """(B, K) logits of the next exit and the state left by the last one (None at the first) → who leaves, (B,) bool."""
        ...


def default_patience(num_exits: int) -> int:
    """round(M/3), the paper's 4 at M = 12."""
    return max(1, round(num_exits / 3))


def check_threshold(exits: ExitConfig, num_exits: int, num_classes: int) -> None:
    """Raises ConfigError where a model of M exits and K classes has no use for a threshold: entropy > ln K, patience ≥ M."""
    t = exits.threshold
    if t is None:
        return
    if exits.strategy == "patience" and t >= num_exits:
        raise ConfigError(
            f"patience {t:g}: this model has {num_exits} exits, so patience lies between 1 and {num_exits - 1} "
            f"({num_exits - 1}: all layers)"
        )
    highest = math.log(num_classes)
    if exits.strategy == "entropy" and t > highest * (1 + THRESHOLD_SLACK):
        hint = " (did you mean normalised_entropy, which lies between 0 and 1?)" if t <= 1 else ""
        raise ConfigError(
            f"entropy threshold {t:g}: with {num_classes} classes it lies between 0 and ln {num_classes} = {highest:.4f}{hint}"
        )


def warn_if_unreachable(exits: ExitConfig, num_exits: int) -> None:
    """Warn where a patience can never be reached before the last exit (patience ≥ M−1)."""
    patience = exits.threshold or default_patience(num_exits)
    if exits.strategy == "patience" and patience >= num_exits - 1:
        warnings.warn(
            f"patience {patience:g} can't be reached before the last of {num_exits} exits: no row will leave early",
            stacklevel=2,
        )


STRATEGIES: dict[str, Callable[[float, int], Strategy]] = {
    "patience": lambda threshold, classes: Patience(int(threshold)),
    "entropy": lambda threshold, classes: Entropy(threshold),
    "normalised_entropy": lambda threshold, classes: Entropy.normalised(threshold, classes),
    "confidence": lambda threshold, classes: Confidence(threshold),
    "never": lambda threshold, classes: Never(),
}


def make_strategy(name: str, threshold: float | None, *, num_exits: int, num_classes: int) -> Strategy:
    """The strategy of that name; `threshold=None` takes the default of patience. Raises ValueError out of range."""
    checked = ExitConfig(strategy=name, threshold=threshold)
    if checked.threshold is None:
        return STRATEGIES[name](default_patience(num_exits), num_classes)
    return STRATEGIES[name](checked.threshold, num_classes)


def replay(strategy: Strategy, logits: np.ndarray) -> np.ndarray:
    """Where each row leaves, from recorded logits (M, N, K) → (N,) exit index from 0; the last exit answers the rest."""
    m, n, _ = logits.shape
    exit_index = np.full(n, m - 1)
    open_rows = torch.ones(n, dtype=torch.bool)
    state: State = None
    for exit_, at_exit in enumerate(torch.from_numpy(logits)[:-1]):
        leaves, state = strategy.step(at_exit, state)
        exit_index[(leaves & open_rows).numpy()] = exit_
        open_rows &= ~leaves
    return exit_index
