"""Make exit criteria from their parameters, and replay them on recorded logits.

Early-exit inference uses the same criterion objects, so that replay and inference give the same exits.
"""

from __future__ import annotations

import importlib.util

import numpy as np

from leebert.deprecated import renamed_arguments
from leebert.exits import CRITERIA
from leebert.exits.arrays import Array, namespace
from leebert.exits.checks import threshold_and_patience
from leebert.exits.criterion import CriterionState, ExitCriterion, Measured


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
    from leebert.config import ExitConfig  # exported models run without pydantic

    exits = ExitConfig.model_validate({"criterion": name, "threshold": threshold, "patience": patience})
    parameters = threshold_and_patience(name, exits.threshold, exits.patience, num_exits)
    return CRITERIA[name].make(*parameters, num_classes)


def _array(logits: np.ndarray) -> Array:
    """Convert recorded logits to the arrays with which the model ran, so that replay and inference agree also at ties.

    Where torch is installed these are tensors, else the logits themselves. Read-only memory is copied, since torch warns
    about it.
    """
    if importlib.util.find_spec("torch") is None:
        return logits
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
    values, state = [], None
    arrays = _array(logits)
    for exit_ in range(len(logits)):
        value, state = criterion.measure(arrays[exit_, ...], state)
        values.append(value)
    return np.asarray(namespace(arrays).stack(values))


def exit_indices(criterion: ExitCriterion, logits: Array) -> Array:
    """Compute the exit of each sample.

    Args:
        criterion: The criterion.
        logits: (M, N, K) of all exits.

    Returns:
        (N,) exit of each sample, from 0; the last exit for samples that do not exit early.
    """
    xp = namespace(logits)
    last = logits.shape[0] - 1  # M is constant, and N can vary in an exported model
    exit_index = xp.full_like(logits[0, :, 0], last, dtype=xp.int64)
    state: CriterionState = None
    for exit_ in range(last):
        exited, state = criterion.step(logits[exit_, ...], state)
        exit_index = xp.where(exited & (exit_index == last), exit_, exit_index)
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
    return np.asarray(exit_indices(criterion, _array(logits)))
