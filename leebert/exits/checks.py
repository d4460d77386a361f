"""Check that an exit criterion, its threshold and its patience suit a model. No torch."""

from __future__ import annotations

import warnings
from typing import Protocol

from leebert.errors import ConfigError
from leebert.exits import CRITERIA, FULL_MODEL, threshold_problem, with_threshold, without_patience
from leebert.exits.criterion import Criterion, ExitCriterion


class ExitParameters(Protocol):
    """The exit criterion with its parameters, as configurations and exported models hold it.

    Attributes:
        criterion: Name of the exit criterion.
        threshold: Its threshold; None: the default, or it has none.
        patience: Its second parameter; None: the default, or it has none.
    """

    @property
    def criterion(self) -> str: ...

    @property
    def threshold(self) -> float | None: ...

    @property
    def patience(self) -> int | None: ...


def choosable(criterion: str) -> Criterion:
    """Look up a criterion that has a threshold to choose.

    Args:
        criterion: Its name.

    Returns:
        Its row.

    Raises:
        ConfigError: No criterion of that name is installed, or it has no threshold.
    """
    row = CRITERIA.require(criterion)
    if not row.has_threshold:
        raise ConfigError(
            f"no threshold of the exit criterion {criterion!r} gives a speed-up; use one of {', '.join(with_threshold())}"
        )
    return row


def check_criterion(criterion: str, patience: int | None, num_exits: int) -> None:
    """Refuse a criterion or a patience that does not suit M exits.

    Args:
        criterion: Its name.
        patience: Its second parameter; None: the default.
        num_exits: M.

    Raises:
        ConfigError: A patience for a criterion without one, one exit where exits are compared, or a patience of M or more.
    """
    if patience is not None and (problem := without_patience(criterion)):
        raise ConfigError(problem)
    row = CRITERIA.get(criterion)
    if row is None:
        return
    if row.several and num_exits < 2:
        alternatives = ", ".join(c.name for c in with_threshold().values() if not c.several)
        raise ConfigError(
            f"criterion {criterion!r} compares successive exits, and this model has one exit: use {FULL_MODEL}, or one of {alternatives}"
        )
    if patience is not None and patience >= num_exits:
        raise ConfigError(
            f"patience {patience} of {criterion}: this model has {num_exits} exits, so it lies between 1 and {num_exits - 1}"
        )


def check_numpy(name: str, criterion: ExitCriterion, num_classes: int) -> None:
    """Refuse a criterion that does not work on NumPy arrays, as exported models need it.

    Args:
        name: Its name.
        criterion: The criterion at a threshold.
        num_classes: K.

    Raises:
        ConfigError: Its `step` fails on NumPy arrays, or returns others.
    """
    import numpy as np

    logits, state = np.eye(num_classes, dtype=np.float32), None
    try:
        for _ in range(2):
            exited, state = criterion.step(logits, state)
            if not isinstance(exited, np.ndarray) or exited.dtype != np.bool_:
                raise TypeError(f"step returned {type(exited).__name__}")
    except Exception as error:  # whatever another package does
        origin = CRITERIA.origin(name)
        raise ConfigError(
            f"exit criterion {name!r}{f' of {origin}' if origin else ''} works on torch tensors only, and exported models "
            f"have NumPy arrays ({type(error).__name__}: {error}); write it with leebert.exits.arrays, or choose another"
        ) from None


def check_classes(criterion: str, num_classes: int) -> None:
    """Refuse a criterion that compares classes for a model with one output per exit.

    Args:
        criterion: Its name.
        num_classes: K.

    Raises:
        ConfigError: Samples can exit early under the criterion, and K is 1.
    """
    row = CRITERIA.get(criterion)
    if num_classes < 2 and row is not None and row.early:
        raise ConfigError(
            f"criterion {criterion!r} compares classes, and this model has one output per exit, as a regression has: use "
            f"{FULL_MODEL}"
        )


def check_threshold(exits: ExitParameters, num_exits: int, num_classes: int) -> None:
    """Refuse exits that do not suit a model of M exits and K classes.

    Args:
        exits: Criterion, threshold and patience.
        num_exits: M.
        num_classes: K.

    Raises:
        ConfigError: The criterion, its patience or its threshold does not suit the model.
    """
    check_classes(exits.criterion, num_classes)
    check_criterion(exits.criterion, exits.patience, num_exits)
    if exits.threshold is not None:
        problem = threshold_problem(exits.criterion, exits.threshold, num_exits, num_classes)
        if problem is not None:
            raise ConfigError(problem)


def warn_if_unreachable(exits: ExitParameters, num_exits: int) -> None:
    """Warn if no sample can meet a criterion before the last exit: a patience, or a sum over exits, too high for M."""
    row = CRITERIA.get(exits.criterion)
    if row is None or not row.several:
        return
    threshold, patience = threshold_and_patience(exits.criterion, exits.threshold, exits.patience, num_exits)
    if not row.rising and threshold > row.bounds(num_exits - 1)[1]:
        setting = f"{row.name} {threshold:g}"
    elif row.first(patience) >= num_exits:
        setting = f"patience {patience} of {row.name}"
    else:
        return
    warnings.warn(
        f"{setting} can't be reached before the last of {num_exits} exits: no sample exits early", stacklevel=2
    )


def threshold_and_patience(
    criterion: str, threshold: float | None, patience: int | None, num_exits: int
) -> tuple[float, int]:
    """Fill in a criterion's defaults.

    Args:
        criterion: Its name.
        threshold: Checked before; None: the default.
        patience: Checked before; None: the default.
        num_exits: M.

    Returns:
        Threshold and patience; 0 and 1 where the criterion has none.
    """
    row = CRITERIA[criterion]
    if not row.has_threshold:
        return 0.0, 1
    if threshold is None:
        assert row.default is not None  # otherwise ExitConfig requires a threshold
        threshold = row.default(num_exits)
    return threshold, row.counted(patience, num_exits) or 1
