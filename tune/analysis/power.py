"""How large a difference a comparison can detect, and how many runs a given difference needs.

The variance is the one that was seen, or a stated one; runs share training data, as the corrected resampled t assumes.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy import special

from tune.analysis.stats import Interval

#: The wanted probability of a significant result.
POWER = 0.8

#: The difference, as a fraction, that a verdict asks for: CLO-v2 minus BLO in the paper's table 1, mean over seven tasks.
DIFFERENCE = 0.0036

#: More runs than this are not considered.
MANY = 1000


@dataclasses.dataclass(frozen=True)
class Power:
    """What a comparison can detect with its runs, and what it would need.

    Attributes:
        difference: The difference to detect, a fraction.
        power: The wanted probability of a significant result.
        runs: The present number of runs.
        std: The standard deviation of the differences of single runs.
        detectable: The smallest difference that the present runs detect with this power.
        needed: The number of runs, present ones included, that detects `difference` on as many folds; None if no number up
            to :data:`MANY` does.
        floor: The smallest difference that any number of runs on as many folds detects.
    """

    difference: float
    power: float
    runs: int
    std: float
    detectable: float
    needed: int | None
    floor: float


def power_of(
    interval: Interval, test_train_ratio: float, difference: float = DIFFERENCE, power: float = POWER
) -> Power | None:
    """Compute what a comparison can detect.

    Args:
        interval: The interval of :func:`tune.analysis.stats.corrected_t` on the present runs.
        test_train_ratio: The ratio with which it was computed.
        difference: The difference to detect, a fraction above 0.
        power: The wanted probability of a significant result.

    Returns:
        The power; None without an interval that is shown.
    """
    if not interval.useful:
        return None
    std = spread(interval, test_train_ratio)
    needed = runs_needed(std, test_train_ratio, difference, power, interval.confidence)
    return Power(
        difference=difference,
        power=power,
        runs=interval.cells,
        std=std,
        detectable=detectable(std, interval.cells, test_train_ratio, power, interval.confidence),
        needed=needed,
        floor=detectable(std, 10**7, test_train_ratio, power, interval.confidence) if test_train_ratio else 0.0,
    )


def spread(interval: Interval, test_train_ratio: float) -> float:
    """Return the standard deviation of single differences, recovered from their corrected interval."""
    quantile = float(special.stdtrit(interval.cells - 1, (1 + interval.confidence) / 2))
    error = (interval.high - interval.low) / 2 / quantile
    return error / math.sqrt(1 / interval.cells + test_train_ratio)


def detectable(std: float, runs: int, test_train_ratio: float, power: float = POWER, confidence: float = 0.95) -> float:
    """Return the smallest difference that a two-sided corrected t over this many runs detects with the given power.

    Args:
        std: The standard deviation of single differences.
        runs: The number of runs, at least 2.
        test_train_ratio: Validation samples per training sample of a run.
        power: The probability of a significant result.
        confidence: One minus the level of the test.
    """
    critical = float(special.stdtrit(runs - 1, (1 + confidence) / 2))
    noncentrality = float(special.nctdtrinc(runs - 1, 1 - power, critical))
    return noncentrality * std * math.sqrt(1 / runs + test_train_ratio)


def runs_needed(
    std: float,
    test_train_ratio: float,
    difference: float,
    power: float = POWER,
    confidence: float = 0.95,
    most: int = MANY,
) -> int | None:
    """Return the number of runs at which a test detects a difference with the given power.

    The power of the two-sided (corrected) one-sample t is that of the noncentral t distribution with J - 1 degrees of
    freedom and noncentrality δ / (s·√(1/J + n_test/n_train)); Cohen, "Statistical Power Analysis for the Behavioral
    Sciences" (1988), section 2.3, with the variance of :func:`tune.analysis.stats.corrected_t`. That variance never falls
    below s²·n_test/n_train, so a small difference may be out of reach of any number of runs.

    Args:
        std: The standard deviation of single differences.
        test_train_ratio: Validation samples per training sample of a run.
        difference: δ, the difference to detect, a fraction above 0.
        power: The wanted probability of a significant result, between 0 and 1.
        confidence: One minus the level of the test.
        most: The largest number of runs to consider.

    Returns:
        The smallest J >= 2 with at least this power; None if there is none up to `most`.
    """
    runs = np.arange(2, most + 1)
    noncentrality = difference / (std * np.sqrt(1 / runs + test_train_ratio))
    critical = special.stdtrit(runs - 1, (1 + confidence) / 2)
    # The opposite tail, a significant difference of the wrong sign, adds less than 1e-4 at any power worth having.
    sufficient = 1 - special.nctdtr(runs - 1, noncentrality, critical) >= power
    return int(runs[np.argmax(sufficient)]) if sufficient.any() else None
