"""The words for one difference and its sides; differences are fractions, shown x100 as points."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from tune.analysis.stats import Interval


def side_name(option: str, value: Any) -> str:
    """`clo-v2`, `lr_theta=0.0001`: what a side is called."""
    return str(value) if option == "algorithm" else f"{option}={value}"


def label(name: str, extra: Mapping[str, Any]) -> str:
    """`clo-v2 (cycle_length=4)`: a side with the options that it alone has."""
    return f"{name} ({', '.join(f'{key}={value}' for key, value in extra.items())})" if extra else name


def points(fraction: float, sign: str = "+") -> str:
    """A difference x100, with its sign."""
    return f"{round(100 * fraction, 2) + 0.0:{sign}.2f}"


def span(interval: Interval) -> str:
    """The ends of an interval, x100."""
    return f"{points(interval.low, '')} to {points(interval.high, '')}" if interval.known else "unknown"


def p_value(p: float | None) -> str:
    """A p as a table shows it: `-` where there is none."""
    return "-" if p is None or math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def verdict(a: str, b: str, interval: Interval, p_folds: float | None = None, *, unit: str = "cell") -> str:
    """A sentence in plain words on the difference A minus B; where B is better, on B minus A.

    One is only better where the p over folds, if there is one, says so too.
    """
    counted = f"{interval.cells} {unit}{'s' if interval.cells > 1 else ''}"
    if not interval.known:
        why = f"one {unit} has no spread" if interval.cells == 1 else f"every {unit} shows the same difference"
        return f"the data cannot tell {a} from {b}: {points(interval.mean)} points, no interval ({why}), {counted}"
    alpha = 1 - interval.confidence
    over_cells = interval.p < alpha
    over_folds = over_cells if p_folds is None else p_folds < alpha
    clear = over_cells and over_folds
    if clear and interval.mean < 0:
        flipped = dataclasses.replace(interval, mean=-interval.mean, low=-interval.high, high=-interval.low)
        return verdict(b, a, flipped, p_folds, unit=unit)
    opening = f"{a} is better than {b}" if clear else f"the data cannot tell {a} from {b}"
    level = f"{100 * interval.confidence:g} % interval {span(interval)}"
    said = f"{opening}: {points(interval.mean)} points, {level}, {counted}"
    if over_cells != over_folds:
        said += f"; over cells p {p_value(interval.p)}, but over folds, with seeds averaged, {p_value(p_folds)}: they disagree"
    return said
