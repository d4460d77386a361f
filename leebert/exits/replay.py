"""Make exit criteria from their parameters, and replay them on recorded logits.

Early-exit inference uses the same criterion objects, so that replay and inference give the same exits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from leebert.config import ExitConfig
from leebert.deprecated import renamed_arguments
from leebert.exits import CRITERIA
from leebert.exits.checks import threshold_and_patience
from leebert.exits.criterion import CriterionState, ExitCriterion, Measured

if TYPE_CHECKING:  # commands that read best files or results start without torch
    import torch


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
        ValueError: The criterion does not exist, or a parameter is out of its range.
    """
    exits = ExitConfig.model_validate({"criterion": name, "threshold": threshold, "patience": patience})
    parameters = threshold_and_patience(name, exits.threshold, exits.patience, num_exits)
    return CRITERIA[name].make(*parameters, num_classes)


def _tensor(logits: np.ndarray) -> torch.Tensor:
    """Convert logits to a tensor; read-only memory is copied, since torch warns about it."""
    import torch

    return torch.from_numpy(np.require(logits, requirements="W"))


def measured(criterion: Measured, logits: np.ndarray) -> np.ndarray:
    """Compute the values that a criterion compares with its threshold.

    Args:
        criterion: The criterion.
        logits: Recorded logits (M, N, K).

    Returns:
        (M, N) float32.
    """
    import torch

    values, state = [], None
    for at_exit in _tensor(logits):
        value, state = criterion.measure(at_exit, state)
        values.append(value)
    return torch.stack(values).numpy()


def exit_indices(criterion: ExitCriterion, logits: torch.Tensor) -> torch.Tensor:
    """Compute the exit of each sample.

    Args:
        criterion: The criterion.
        logits: (M, N, K) of all exits.

    Returns:
        (N,) exit of each sample, from 0; the last exit for samples that do not exit early.
    """
    import torch

    exits = logits.unbind(0)  # M is constant, and N can vary in an exported model
    last = len(exits) - 1
    exit_index = torch.full_like(exits[0][:, 0], last, dtype=torch.int64)
    state: CriterionState = None
    for exit_, at_exit in enumerate(exits[:-1]):
        exited, state = criterion.step(at_exit, state)
        exit_index = torch.where(exited & (exit_index == last), exit_, exit_index)
    return exit_index


@renamed_arguments(strategy="criterion")
def replay(criterion: ExitCriterion, logits: np.ndarray) -> np.ndarray:
    """Compute the exit of each sample from recorded logits.

    Args:
        criterion: The criterion, from :func:`make_criterion`.
        logits: Recorded logits (M, N, K).

    Returns:
        (N,) exit of each sample, from 0.
    """
    return exit_indices(criterion, _tensor(logits)).numpy()
