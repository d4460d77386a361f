"""How large a difference a comparison can detect, and how many folds × seeds a given difference needs.

The test is :func:`tune.analysis.stats.random_effects`, under the variances that a comparison showed: v of the validation
samples of a fold, τ² of training sets, and that of seeds, which more seeds average out.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np
from scipy import special

from tune.analysis.stats import USEFUL, Interval, fold_ratio, half_widths, standard_errors

#: The wanted probability of a significant result.
POWER = 0.8

#: The difference, as a fraction, that a verdict asks for: CLO-v2 minus BLO in the paper's table 1, mean over seven tasks.
DIFFERENCE = 0.0036

#: Numbers of folds that are considered, besides those of a sweep.
FOLDS = (3, 5, 10, 20)

#: More runs than this are not considered.
MANY = 1000


class Spread(NamedTuple):
    """The variances of a difference, fractions squared.

    Attributes:
        sampling: v, of the validation samples of a fold, on `folds` folds; 0 if it is unknown and part of the others.
        training: τ², of everything else that differs between folds and that more seeds do not average out.
        seeds: The variance of single runs within a fold.
        folds: The number of folds on which these were seen; 1 for a hold-out.
        apart: Whether the variance of seeds is known apart from that of folds.
    """

    sampling: float
    training: float
    seeds: float
    folds: int
    apart: bool = True

    @classmethod
    def of(cls, interval: Interval) -> Spread:
        """Take a comparison's variances; those of its seeds count as training sets' if no fold has two."""
        v = interval.sampling
        if interval.folds < 2:
            return cls(v, 0.0, interval.std**2, 1)
        rest, apart = max(0.0, interval.between - v), not math.isnan(interval.within)
        per_mean = min(rest, interval.within * interval.folds / interval.cells) if apart else 0.0
        return cls(v, rest - per_mean, per_mean * interval.cells / interval.folds, interval.folds, apart)

    def on(self, folds: int, seeds: float) -> tuple[float, float]:
        """Return v and the remaining variance of a fold's mean over seeds; of a single run's, for a hold-out.

        A fold of K has 1/K of the samples, so v grows as K.
        """
        v = self.sampling * folds / self.folds
        return (v, self.training + self.seeds / seeds) if folds > 1 else (v, self.seeds)


@dataclasses.dataclass(frozen=True)
class StatedVariances:
    """The variances of differences that a sweep is planned with.

    Attributes:
        std: The standard deviation of single runs' differences, a fraction.
        seen: Its parts, as an earlier sweep showed them; None: only `std` is known.
        samples: The training samples of that sweep; 0 if unknown.
    """

    std: float
    seen: Spread | None = None
    samples: int = 0

    def on(self, folds: int, samples: int = 0) -> Spread:
        """Return the variances for a sweep on so many folds.

        The sampling variance falls with the number of samples. If only `std` is known, or one sweep has folds and the other
        a single split, none of the variance is by seeds: so no more is promised than the runs will detect.

        Args:
            folds: Its number of folds; 1 for a hold-out.
            samples: Its training samples; 0: as many as the earlier sweep.
        """
        if self.seen is not None and (self.seen.folds > 1) == (folds > 1):
            fewer = self.samples / samples if self.samples and samples else 1.0
            return self.seen._replace(sampling=self.seen.sampling * fewer)
        variance = self.std**2
        return Spread(0.0, 0.0, variance, 1) if folds == 1 else Spread(0.0, variance, 0.0, folds, apart=False)


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
        floor: The smallest difference that any number of seeds on these folds detects; None if the variance of seeds is
            unknown.
        plans: The seeds that `difference` needs, on these folds first and then, if the sampling variance is known, on other
            numbers of folds.
    """

    difference: float
    power: float
    confidence: float
    std: float
    folds: int
    runs: int
    detectable: float | None
    floor: float | None
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
        Spread.of(interval),
        max(1, interval.folds),
        difference,
        runs=interval.cells,
        test_train_ratio=test_train_ratio,
        power=power,
        confidence=interval.confidence,
        std=interval.std,
    )


def power_for(
    spread: Spread,
    folds: int,
    difference: float,
    *,
    runs: int = 0,
    test_train_ratio: float | None = None,
    power: float = POWER,
    confidence: float = 0.95,
    std: float = math.nan,
) -> Power:
    """Compute what runs with given variances of their differences can detect.

    Args:
        spread: The variances.
        folds: The number of folds; 1: a hold-out.
        difference: The difference to detect, a fraction above 0.
        runs: The number of runs; 0: none yet.
        test_train_ratio: Validation samples per training sample on these folds; None: 1/(folds - 1).
        power: The wanted probability of a significant result.
        confidence: One minus the level of the test.
        std: The standard deviation of single runs' differences, to be shown.
    """
    ratio = fold_ratio(folds) if test_train_ratio is None else test_train_ratio
    others = FOLDS if folds > 1 and spread.sampling > 0 else ()
    ratios = {folds: ratio, **{k: fold_ratio(k) for k in others if k != folds}}
    plans = tuple(Plan(k, seeds_needed(spread, k, r, difference, power, confidence)) for k, r in ratios.items())
    enough = runs >= USEFUL and folds != 2 and runs >= folds
    return Power(
        difference=difference,
        power=power,
        confidence=confidence,
        std=std,
        folds=folds,
        runs=runs,
        detectable=detectable(spread, folds, runs / folds, ratio, power, confidence) if enough else None,
        floor=detectable(spread, folds, 10**6, ratio, power, confidence) if spread.apart else None,
        plans=plans,
    )


@functools.lru_cache(maxsize=4096)
def detectable(
    spread: Spread, folds: int, seeds: float, test_train_ratio: float, power: float = POWER, confidence: float = 0.95
) -> float:
    """Return the smallest difference that the test detects with the given power.

    The mean difference is normal with the variance of :func:`tune.analysis.stats.random_effects`, and independent of the
    variance that the test sees, which is χ²; the power is the mean over the half-widths that this variance gives. Without
    v the test is a t-test, whose power is that of the noncentral t distribution (Cohen, "Statistical Power Analysis for the
    Behavioral Sciences" (1988), section 2.3).

    Args:
        spread: The variances of differences.
        folds: The number of folds; 1 for a hold-out, whose test is over runs.
        seeds: The number of seeds, or the runs per fold.
        test_train_ratio: Validation samples per training sample of a run.
        power: The probability of a significant result.
        confidence: One minus the level of the test.
    """
    v, rest = spread.on(folds, seeds)
    df = (folds if folds > 1 else seeds) - 1
    if folds > 1:
        error = math.sqrt(v / folds + rest * (1 / folds + test_train_ratio))
    else:
        error = math.sqrt(v + rest * (1 / seeds + test_train_ratio))
    if v <= 0:
        critical = float(special.stdtrit(df, (1 + confidence) / 2))
        return float(special.nctdtrinc(df, 1 - power, critical)) * error
    seen = (v + rest if folds > 1 else rest) / df * 2 * special.gammaincinv(df / 2, (np.arange(48) + 0.5) / 48)
    errors, weights = standard_errors(seen, v, folds, round(folds * seeds), test_train_ratio)
    half = half_widths(errors, weights, 1 - confidence)
    low, high = 0.0, float(half.max()) + 10 * error
    for _ in range(40):
        middle = (low + high) / 2
        # A significant difference of the wrong sign adds less than 1e-4 at any power worth having.
        low, high = (low, middle) if special.ndtr((middle - half) / error).mean() >= power else (middle, high)
    return high


def seeds_needed(
    spread: Spread,
    folds: int,
    test_train_ratio: float,
    difference: float,
    power: float = POWER,
    confidence: float = 0.95,
    most: int = MANY,
) -> int | None:
    """Return the number of seeds at which the test detects a difference with the given power.

    More seeds average out the variance of seeds alone, so a small difference may be out of reach of any number.

    Args:
        spread: The variances of differences.
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

    def sufficient(seeds: int) -> bool:
        return detectable(spread, folds, seeds, test_train_ratio, power, confidence) <= difference

    low, high = -(-USEFUL // folds), most // folds
    if not sufficient(high):
        return None
    while low < high:  # what is detected falls with the seeds
        middle = (low + high) // 2
        low, high = (low, middle) if sufficient(middle) else (middle + 1, high)
    return low
