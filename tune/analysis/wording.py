"""Describe a difference and its two sides in words; differences are fractions, shown x100 as points."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from tune.analysis.stats import Interval, samples_needed

#: The difference, as a fraction, for which a verdict without a significant difference states the necessary number of runs.
DETECTED = 0.01

#: The power of that test.
POWER = 0.8

#: With fewer runs than this the t distribution has such heavy tails that an interval is too wide to be of use.
USEFUL = 4

#: Above this number, a verdict only states that more runs do not help in practice.
MANY = 1000


def side_name(option: str, value: Any) -> str:
    """Name a side of a comparison: `clo-v2`, `lr_theta=0.0001`."""
    return str(value) if option == "algorithm" else f"{option}={value}"


def label(name: str, extra: Mapping[str, Any]) -> str:
    """Return a side's name with the options that it alone has: `clo-v2 (cycle_length=4)`."""
    return f"{name} ({', '.join(f'{key}={value}' for key, value in extra.items())})" if extra else name


def points(fraction: float, sign: str = "+") -> str:
    """Return a difference x100, with its sign."""
    return f"{round(100 * fraction, 2) + 0.0:{sign}.2f}"


def span(interval: Interval) -> str:
    """Return the ends of an interval, x100."""
    return f"{points(interval.low, '')} to {points(interval.high, '')}" if interval.defined else "unknown"


def level(confidence: float) -> str:
    """Return the heading of confidence intervals: `95 % CI`."""
    return f"{100 * confidence:.4g} % CI"


def p_value(p: float | None) -> str:
    """Return a p-value as tables show it: `-` if there is none."""
    return "-" if p is None or math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def verdict(
    a: str,
    b: str,
    interval: Interval,
    p_folds: float | None = None,
    *,
    unit: str = "run",
    test_train_ratio: float | None = None,
) -> str:
    """Return a sentence on the difference A minus B; if B is significantly better, on B minus A.

    Args:
        a: A's name.
        b: B's name.
        interval: The difference A minus B, as a fraction, with its confidence interval.
        p_folds: The p-value over folds, with seeds averaged; None if no fold has two seeds. A difference is only
            significant if it is so over runs and over folds.
        unit: What the differences are of, `run` or `task`.
        test_train_ratio: Validation samples per training sample of a run. With it, a difference that is not significant is
            followed by the number of runs that would detect :data:`DETECTED` at :data:`POWER`.
    """
    counted = f"{interval.cells} {unit}{'s' if interval.cells > 1 else ''}"
    if not interval.defined:
        reason = f"one {unit} has no spread" if interval.cells == 1 else f"every {unit} shows the same difference"
        return (
            f"no significant difference between {a} and {b}: {points(interval.mean)} points, no interval ({reason}), "
            f"{counted}"
        )
    alpha = 1 - interval.confidence
    over_runs = interval.p < alpha
    over_folds = over_runs if p_folds is None else p_folds < alpha
    significant = over_runs and over_folds
    if significant and interval.mean < 0:
        flipped = dataclasses.replace(interval, mean=-interval.mean, low=-interval.high, high=-interval.low)
        return verdict(b, a, flipped, p_folds, unit=unit, test_train_ratio=test_train_ratio)
    opening = f"{a} is better than {b}" if significant else f"no significant difference between {a} and {b}"
    sentence = f"{opening}: {points(interval.mean)} points, {level(interval.confidence)} {span(interval)}, {counted}"
    if over_runs != over_folds:
        over = f"p {p_value(interval.p)} over {unit}s, but {p_value(p_folds)} over folds, with seeds averaged"
        return f"{sentence}; {over}: they disagree"
    if not significant and test_train_ratio is not None:
        sentence += f"; {needed(interval, test_train_ratio, unit)}"
    return sentence


def needed(interval: Interval, test_train_ratio: float, unit: str = "run") -> str:
    """Say how many more runs would detect a difference of :data:`DETECTED` at :data:`POWER`.

    Args:
        interval: The interval of the measured difference.
        test_train_ratio: Validation samples of a fold / its training samples.
        unit: What the interval counts, in the singular.

    Returns:
        One clause, without a full stop (:func:`samples_needed`).
    """
    if interval.cells < USEFUL:
        return f"{interval.cells} {unit}s are too few for a narrow interval"
    goal = f"a difference of {100 * DETECTED:g} point ({100 * POWER:g} % power)"
    total = samples_needed(interval, test_train_ratio, DETECTED, POWER, most=MANY)
    if total is None:
        return f"no number of further {unit}s up to {MANY} would be enough to detect {goal}"
    if total <= interval.cells:
        return f"these {unit}s are enough to detect {goal}"
    more = total - interval.cells
    return f"{more} more {unit}{'s' if more > 1 else ''} would be needed to detect {goal}"
