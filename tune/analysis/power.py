"""How large a difference a comparison can detect, and how many folds × seeds a given difference needs.

The test is the corrected t over folds' means, of which :func:`tune.analysis.stats.random_effects` is a refinement. With the
standard deviation s of the runs' differences, K folds and S seeds, its standard error is s·√(1/(KS) + 1/(K - 1)), with K - 1
degrees of freedom: more seeds only shrink the first term. s is the one that was seen, or a stated one.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from scipy import special

from tune.analysis.stats import USEFUL, Interval, fold_ratio

#: The wanted probability of a significant result.
POWER = 0.8

#: The difference, as a fraction, that a verdict asks for: CLO-v2 minus BLO in the paper's table 1, mean over seven tasks.
DIFFERENCE = 0.0036

#: Numbers of folds that are considered, besides those of a sweep.
FOLDS = (3, 5, 10, 20)

#: More runs than this are not considered.
MANY = 1000


class Plan(NamedTuple):
    """A number of folds, and the seeds that a difference needs on them; None if no number up to :data:`MANY` runs does."""

    folds: int
    seeds: int | None

    @property
    def runs(self) -> int | None:
        return None if self.seeds is None else self.folds * self.seeds


@dataclasses.dataclass(frozen=True)
class Power:
    """What a comparison can detect with its runs, and what it would need.

    Attributes:
        difference: The difference to detect, a fraction.
        power: The wanted probability of a significant result.
        confidence: One minus the level of the test.
        std: The standard deviation of the differences of single runs.
        folds: The present number of folds; 1 for a hold-out.
        runs: The present number of runs; 0 for none yet.
        detectable: The smallest difference that the present runs detect with this power; None if they are too few.
        floor: The smallest difference that any number of seeds on these folds detects.
        plans: The seeds that `difference` needs, on these folds first and then on other numbers of folds.
    """

    difference: float
    power: float
    confidence: float
    std: float
    folds: int
    runs: int
    detectable: float | None
    floor: float
    plans: tuple[Plan, ...]

    @property
    def best(self) -> Plan | None:
        """The plan with the fewest runs; None if `difference` is out of reach of all."""
        possible = [plan for plan in self.plans if plan.runs is not None]
        return min(possible, key=lambda plan: plan.runs or 0, default=None)

    @property
    def enough(self) -> bool:
        """Whether the present runs detect `difference`."""
        return self.detectable is not None and self.detectable <= self.difference


def power_of(
    interval: Interval, test_train_ratio: float, difference: float = DIFFERENCE, power: float = POWER
) -> Power | None:
    """Compute what a comparison can detect.

    Args:
        interval: Its difference, of :func:`tune.analysis.stats.random_effects`.
        test_train_ratio: Validation samples per training sample of a run.
        difference: The difference to detect, a fraction above 0.
        power: The wanted probability of a significant result.

    Returns:
        The power; None without an interval that is shown.
    """
    if not interval.useful or math.isnan(interval.std):
        return None
    return power_for(
        interval.std,
        max(1, interval.folds),
        difference,
        runs=interval.cells,
        test_train_ratio=test_train_ratio,
        power=power,
        confidence=interval.confidence,
    )


def power_for(
    std: float,
    folds: int,
    difference: float,
    *,
    runs: int = 0,
    test_train_ratio: float | None = None,
    power: float = POWER,
    confidence: float = 0.95,
) -> Power:
    """Compute what runs with a given standard deviation of their differences can detect.

    Args:
        std: The standard deviation, a fraction.
        folds: The number of folds; 1: a hold-out.
        difference: The difference to detect, a fraction above 0.
        runs: The number of runs; 0: none yet.
        test_train_ratio: Validation samples per training sample on these folds; None: 1/(folds - 1).
        power: The wanted probability of a significant result.
        confidence: One minus the level of the test.
    """
    ratio = fold_ratio(folds) if test_train_ratio is None else test_train_ratio
    ratios = {folds: ratio, **({k: fold_ratio(k) for k in FOLDS if k != folds} if folds > 1 else {})}
    plans = tuple(Plan(k, seeds_needed(std, k, r, difference, power, confidence)) for k, r in ratios.items())
    enough = runs >= USEFUL and folds != 2 and runs >= folds
    return Power(
        difference=difference,
        power=power,
        confidence=confidence,
        std=std,
        folds=folds,
        runs=runs,
        detectable=detectable(std, folds, runs, ratio, power, confidence) if enough else None,
        floor=detectable(std, folds, 10**7, ratio, power, confidence),
        plans=plans,
    )


def detectable(
    std: float, folds: int, runs: int, test_train_ratio: float, power: float = POWER, confidence: float = 0.95
) -> float:
    """Return the smallest difference that the test detects with the given power.

    Args:
        std: The standard deviation of single runs' differences.
        folds: The number of folds; 1 for a hold-out, whose test is over runs.
        runs: The number of runs, at least 2.
        test_train_ratio: Validation samples per training sample of a run.
        power: The probability of a significant result.
        confidence: One minus the level of the test.
    """
    df = (folds if folds > 1 else runs) - 1
    critical = float(special.stdtrit(df, (1 + confidence) / 2))
    noncentrality = float(special.nctdtrinc(df, 1 - power, critical))
    return noncentrality * std * math.sqrt(1 / runs + test_train_ratio)


def seeds_needed(
    std: float,
    folds: int,
    test_train_ratio: float,
    difference: float,
    power: float = POWER,
    confidence: float = 0.95,
    most: int = MANY,
) -> int | None:
    """Return the number of seeds at which the test detects a difference with the given power.

    The power is that of the noncentral t distribution with noncentrality δ / (s·√(1/(KS) + n_test/n_train)); Cohen,
    "Statistical Power Analysis for the Behavioral Sciences" (1988), section 2.3, with the variance of
    :func:`tune.analysis.stats.corrected_t`. That variance never falls below s²·n_test/n_train, so a small difference may be
    out of reach of any number of seeds.

    Args:
        std: s, the standard deviation of single runs' differences.
        folds: K; 1 for a hold-out, whose test is over runs.
        test_train_ratio: Validation samples per training sample of a run.
        difference: δ, the difference to detect, a fraction above 0.
        power: The wanted probability of a significant result, between 0 and 1.
        confidence: One minus the level of the test.
        most: The largest number of runs to consider.

    Returns:
        The smallest number with at least this power, and with runs enough for an interval; None if there is none up to
        `most` runs.
    """
    if folds == 2:
        return None  # no interval is shown
    seeds = np.arange(-(-USEFUL // folds), most // folds + 1)
    degrees = np.full(len(seeds), folds - 1) if folds > 1 else seeds - 1
    noncentrality = difference / (std * np.sqrt(1 / (folds * seeds) + test_train_ratio))
    critical = special.stdtrit(degrees, (1 + confidence) / 2)
    # The opposite tail, a significant difference of the wrong sign, adds less than 1e-4 at any power worth having.
    sufficient = 1 - special.nctdtr(degrees, noncentrality, critical) >= power
    return int(seeds[np.argmax(sufficient)]) if sufficient.any() else None
