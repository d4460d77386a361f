"""Differences and their intervals as text: fractions, shown ×100 as points."""

from __future__ import annotations

import math

#: Decimals of points, unless an end of an interval needs more.
DECIMALS = 2

#: The most decimals of an end: what is closer to 0 is rounding error of the computation.
MOST_DECIMALS = 8


def in_points(fraction: float, sign: str = "+") -> str:
    """Return a difference ×100 with two decimals: `+1.20`, `−0.35`; a difference that rounds to 0 has no minus sign.

    Args:
        fraction: The difference.
        sign: `+` to sign positive differences, too; empty otherwise.
    """
    return f"{round(100 * fraction, DECIMALS) + 0.0:{sign}.{DECIMALS}f}".replace("-", "−")


def ends_in_points(low: float, high: float) -> str:
    """Return the ends of an interval ×100: `−0.60 to 0.81`.

    An end that rounds to 0.00 without being 0 gets the decimals that show on which side of 0 it is, and so whether the
    interval contains 0: `−0.003 to 3.80`.

    Args:
        low: The lower end, a fraction.
        high: The upper end.
    """
    return f"{_end(low)} to {_end(high)}"


def _end(fraction: float) -> str:
    value = 100 * fraction
    decimals = DECIMALS
    if math.isfinite(value):
        while decimals < MOST_DECIMALS and round(value, MOST_DECIMALS) and not round(value, decimals):
            decimals += 1
    return f"{round(value, decimals) + 0.0:.{decimals}f}".replace("-", "−")
