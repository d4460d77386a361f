"""Exit criteria: when inference stops for a sample. One file per criterion, for torch tensors and NumPy arrays alike.

Another package adds its own by an entry point of the group ``leebert.criteria`` or by ``CRITERIA.register(criterion)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from leebert.exits.criterion import Criterion, check_fits
from leebert.plugins import Registry


def _check(plugin: Criterion) -> None:
    check_fits(plugin)
    if plugin.unit_of is not None and (plugin.unit_of == plugin.name or plugin.unit_of not in CRITERIA):
        raise ValueError(f"unit_of should name another criterion: {CRITERIA.unknown(plugin.unit_of)}")


#: Built-in criteria and the modules of this package that define them, in the order of tables and choices.
CRITERIA: Registry[Criterion] = Registry(
    "exit criterion",
    "leebert.criteria",
    "leebert.exits",
    "CRITERION",
    {
        "patience": "patience",
        "entropy": "entropy",
        "normalised_entropy": "normalised_entropy",
        "confidence": "confidence",
        "pcee": "pcee",
        "f-pabee": "f_pabee",
        "beem": "beem",
        "never": "never",
    },
    Criterion,
    _check,
)

#: The criterion of models and methods for which none is chosen: the paper's.
DEFAULT = "patience"

#: The criterion of curves for which none is chosen: reports of training, MLflow, pages.
REPORTED = "normalised_entropy"

#: The criterion under which no sample exits early.
FULL_MODEL = "never"


def with_threshold() -> dict[str, Criterion]:
    """The criteria that have a threshold to choose, by name."""
    return {name: criterion for name, criterion in CRITERIA.items() if criterion.has_threshold}


def usable(num_exits: int, names: Iterable[str] | None = None) -> list[Criterion]:
    """Return the criteria with a threshold that a model of M exits has a use for, each in one unit.

    Args:
        num_exits: M.
        names: The criteria to choose among; None: all that are installed.
    """
    rows = CRITERIA.values() if names is None else [row for name in names if (row := CRITERIA.find(name))]
    return [c for c in rows if c.has_threshold and c.unit_of is None and (num_exits > 1 or not c.several)]


def named(criterion: str, patience: int | None) -> str:
    """A criterion with its second parameter, where it has one: `confidence`, `pcee, patience 2`."""
    return criterion if patience is None else f"{criterion}, patience {patience}"


def without_patience(criterion: str) -> str | None:
    """Explain why a criterion takes no second parameter `patience`; None if it takes one."""
    row = CRITERIA.get(criterion)
    if row is not None and row.patience is not None:
        return None
    counting = " and ".join(c.name for c in CRITERIA.values() if c.patience)
    hint = "its threshold is the patience" if row is not None and row.whole else f"{counting} have one"
    return f"criterion {criterion!r} has no parameter 'patience': {hint}"


def threshold_problem(
    criterion: str, threshold: float, num_exits: float = math.inf, num_classes: float = math.inf
) -> str | None:
    """Describe what is wrong with a criterion's threshold, with a hint if another unit is likely.

    Args:
        criterion: Name of the exit criterion.
        threshold: The threshold.
        num_exits: M; infinity: unknown.
        num_classes: K; infinity: unknown.

    Returns:
        One sentence; None if the threshold is valid.
    """
    problem = CRITERIA[criterion].problem(threshold, num_exits, num_classes)
    if problem is None or CRITERIA[criterion].whole:
        return problem
    variants = (c for c in CRITERIA.values() if c.unit_of == criterion)
    likely = next((c for c in variants if threshold > 0 and c.problem(threshold) is None), None)
    return problem + (f" (did you mean {likely.name}, which lies between 0 and {likely.top}?)" if likely else "")
