"""Exit criteria at work: made from their parameters, and run over recorded logits.

Inference that stops computing steps the same object from exit to exit, so the two can't disagree.
"""

from __future__ import annotations

import numpy as np
import torch

from leebert.config import ExitConfig
from leebert.exits import CRITERIA
from leebert.exits.checks import threshold_and_patience
from leebert.exits.criterion import ExitCriterion, Measured, State


def make_criterion(
    name: str, threshold: float | None, patience: int | None = None, *, num_exits: int, num_classes: int
) -> ExitCriterion:
    """Make an exit criterion.

    Args:
        name: One of :data:`leebert.exits.CRITERIA`.
        threshold: None: the criterion's default.
        patience: Its second parameter; None: the default.
        num_exits: M.
        num_classes: K.

    Returns:
        An object whose `step` decides at each exit which samples exit.

    Raises:
        ValueError: No such criterion, or a parameter out of its range.
    """
    exits = ExitConfig.model_validate({"criterion": name, "threshold": threshold, "patience": patience})
    own = threshold_and_patience(name, exits.threshold, exits.patience, num_exits)
    return CRITERIA[name].make(*own, num_classes)


def _tensor(logits: np.ndarray) -> torch.Tensor:
    """Logits that may be a view of a file opened for reading, of whose memory torch would warn."""
    return torch.from_numpy(np.require(logits, requirements="W"))


def measured(criterion: Measured, logits: np.ndarray) -> np.ndarray:
    """What a criterion compares with its threshold, from recorded logits (M, N, K) → (M, N) float32."""
    values, state = [], None
    for at_exit in _tensor(logits):
        value, state = criterion.measure(at_exit, state)
        values.append(value)
    return torch.stack(values).numpy()


def exit_indices(criterion: ExitCriterion, logits: torch.Tensor) -> torch.Tensor:
    """Where each sample exits, from all exits' logits (M, N, K) → (N,) exit from 0; the last exit answers the rest."""
    exits = logits.unbind(0)  # M is a number, N stays a size that an exported model may change
    last = len(exits) - 1
    exit_index = torch.full_like(exits[0][:, 0], last, dtype=torch.int64)
    state: State = None
    for exit_, at_exit in enumerate(exits[:-1]):
        leaves, state = criterion.step(at_exit, state)
        exit_index = torch.where(leaves & (exit_index == last), exit_, exit_index)
    return exit_index


def replay(criterion: ExitCriterion, logits: np.ndarray) -> np.ndarray:
    """As :func:`exit_indices`, from recorded logits."""
    return exit_indices(criterion, _tensor(logits)).numpy()
