"""Statistics of paired differences, one number per run (one seed, one fold): pure functions of the differences.

Runs share training data, so the ordinary paired t-test and the sign-flip test are optimistic: both assume independent
differences. Decide by :func:`random_effects` (docs/decisions/estimator.md).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special

#: Up to this number of sign patterns all are enumerated; beyond, they are drawn at random.
EXACT_PATTERNS = 2**16

#: With fewer runs than this the t distribution has such heavy tails that an interval is too wide to be of use.
USEFUL = 4


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean difference with its confidence interval and its two-sided p-value.

    Attributes:
        mean: The mean difference, a fraction.
        low: The lower end of the interval; NaN for fewer than two runs, or the same difference in every run.
        high: The upper end; NaN likewise.
        p: The two-sided p-value; NaN likewise.
        cells: The number of runs (or tasks) that the mean is over.
        confidence: The confidence level, between 0 and 1.
        std: The standard deviation of the runs' differences (ddof = 1); NaN for one run, or if not computed.
        folds: The number of folds of these runs, 1 for a hold-out; 0 if they are not those of a comparison by folds.
        sampling: The sampling variance of a fold's mean difference; 0 if unknown.
        between: The variance of the folds' mean differences; NaN with fewer than two folds.
        within: The variance of single runs within a fold; NaN if no fold has two seeds.
    """

    mean: float
    low: float
    high: float
    p: float
    cells: int
    confidence: float = 0.95
    std: float = math.nan
    folds: int = 0
    sampling: float = 0.0
    between: float = math.nan
    within: float = math.nan

    @property
    def defined(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low)

    @property
    def useful(self) -> bool:
        """Whether there is an interval of enough runs (:data:`USEFUL`) and folds (3, or a single split) to be shown."""
        return self.defined and self.cells >= USEFUL and self.folds != 2

    def missing(self, unit: str = "run") -> str:
        """Return why no interval is shown; empty if one is.

        Args:
            unit: What the differences are of, `run` or `task`.
        """
        if self.cells < USEFUL:
            return (
                f"{self.cells} {unit}{'s are' if self.cells > 1 else ' is'} too few for an interval (at least {USEFUL})"
            )
        if self.folds == 2:
            return "2 folds are too few for an interval (at least 3)"
        if self.folds == 1 and not self.defined and not self.sampling:
            return "one split without recorded validation logits shows no sampling variance, so there is no interval"
        return "" if self.defined else f"every {unit} shows the same difference, so there is no interval"

    def clipped(self, least: float, most: float) -> Interval:
        """Return it with its ends between two numbers, such as the least and the largest possible score."""
        low, high = (min(max(end, least), most) if self.defined else end for end in (self.low, self.high))
        return dataclasses.replace(self, low=low, high=high)

    @property
    def significant(self) -> bool | None:
        """Whether the difference is significant; None if no interval is shown, as nothing can be said."""
        return self.p < 1 - self.confidence if self.useful else None


def corrected_t(diffs: Sequence[float], test_train_ratio: float, confidence: float = 0.95) -> Interval:
    """Compute the corrected resampled t: t = d̄ / √((1/J + n_test/n_train)·s²) with J - 1 degrees of freedom.

    Nadeau and Bengio, "Inference for the generalization error", Machine Learning 52 (2003), section 3. With J = 1, or
    s = 0 (up to rounding), the spread is unknown and so is the interval: a few equal differences of coarse scores are no
    certainty.

    Args:
        diffs: (J,) differences, one per run; s² is their sample variance (ddof = 1).
        test_train_ratio: n_test/n_train, validation samples per training sample (see :func:`fold_ratio`); 0 gives the
            ordinary one-sample t.
        confidence: The level of the interval, between 0 and 1.

    Raises:
        ValueError: If an argument is out of its range or a difference is not finite.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1, not {confidence}")
    if not 0 <= test_train_ratio < math.inf:
        raise ValueError(f"n_test/n_train is a finite number of at least 0, not {test_train_ratio}")
    d = _checked(diffs)
    mean, cells = float(d.mean()), len(d)
    if np.ptp(d) <= 1e-12 * np.abs(d).max():
        return Interval(mean, math.nan, math.nan, math.nan, cells, confidence)
    error = math.sqrt(1 / cells + test_train_ratio) * float(d.std(ddof=1))
    half = float(special.stdtrit(cells - 1, (1 + confidence) / 2)) * error
    p = 2 * float(special.stdtr(cells - 1, -abs(mean) / error))
    return Interval(mean, mean - half, mean + half, p, cells, confidence, float(d.std(ddof=1)))


def random_effects(
    diffs: Mapping[tuple[int, int], float], test_train_ratio: float, confidence: float = 0.95, sampling: float = 0.0
) -> Interval:
    """Compute the interval of a cross-validated difference, with random effects of samples and of training sets.

    A fold's mean difference over seeds, d_k, varies by the choice of validation samples, with the variance v that is known
    from the single samples, and by everything else (training sets, seeds), with an unknown variance τ². Validation samples
    of different folds are independent; training sets overlap, so that τ² gets the correction of :func:`corrected_t`:
    Var(d̄) = v/K + τ²·(1/K + n_test/n_train). The unknown τ² is integrated out: (K - 1)·s²/(v + τ²) is χ² with K - 1 degrees
    of freedom, s² the variance of the d_k (Weerahandi, "Generalized confidence intervals", JASA 88 (1993)). With v = 0 this
    is :func:`corrected_t` over the folds' means. A hold-out has one sample of validation samples for all S seeds:
    Var(d̄) = v + σ²·(1/S + n_test/n_train), with σ² the variance of seeds; without v it has no interval.

    The level is held if effects of training sets correlate as the correction assumes. If they correlate by the share of
    common samples, no estimator holds it from 5 folds on: 11 to 31 % instead of 5 (docs/decisions/estimator.md).

    Args:
        diffs: (seed, fold) → difference of this run, a fraction.
        test_train_ratio: Validation samples per training sample of a run.
        confidence: The level of the interval, between 0 and 1.
        sampling: v, the mean over folds of the sampling variance of a fold's mean difference; 0 if unknown.

    Raises:
        ValueError: As :func:`corrected_t`.
    """
    by_fold: dict[int, list[float]] = {}
    for (_, fold), diff in diffs.items():
        by_fold.setdefault(fold, []).append(diff)
    k, runs = len(by_fold), list(diffs.values())
    every = corrected_t(runs, test_train_ratio, confidence)
    means = [math.fsum(of_fold) / len(of_fold) for of_fold in by_fold.values()]
    freedom = len(runs) - k
    within = math.fsum((d - m) ** 2 for m, of in zip(means, by_fold.values(), strict=True) for d in of)
    every = dataclasses.replace(
        every,
        folds=k,
        sampling=sampling,
        between=float(np.var(means, ddof=1)) if k > 1 else math.nan,
        within=within / freedom if freedom else math.nan,
    )
    plain = corrected_t(means, test_train_ratio, confidence) if k > 1 else every
    if not plain.defined or (k < 2 and sampling <= 0):
        return dataclasses.replace(every, low=math.nan, high=math.nan, p=math.nan)
    if sampling <= 0:
        shift = every.mean - plain.mean
        return dataclasses.replace(every, low=plain.low + shift, high=plain.high + shift, p=plain.p)
    spread = np.array([every.between if k > 1 else every.within])
    errors, weights = standard_errors(spread, sampling, k, len(runs), test_train_ratio)
    half = float(half_widths(errors, weights, 1 - confidence)[0])
    p = float(_two_sided(np.array([abs(every.mean)]), errors, weights)[0])
    return dataclasses.replace(every, low=every.mean - half, high=every.mean + half, p=p)


def standard_errors(
    spread: np.ndarray, sampling: float, folds: int, runs: int, test_train_ratio: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the standard errors that an observed variance allows, with their weights; see :func:`random_effects`.

    Args:
        spread: (J,) observed variances of folds' means, of seeds for one fold.
        sampling: The sampling variance of a fold's mean difference.
        folds: The number of folds.
        runs: The number of runs.
        test_train_ratio: Validation samples per training sample of a run.

    Returns:
        (J, N) standard errors and (N,) weights.
    """
    df = (folds if folds > 1 else runs) - 1
    quantiles, weights = _chi_squared(df)
    total: np.ndarray = df * spread[:, None] / quantiles
    if folds < 2:
        return np.sqrt(sampling + total * (1 / runs + test_train_ratio)), weights
    training = np.maximum(0.0, total - sampling)
    return np.sqrt(sampling / folds + training * (1 / folds + test_train_ratio)), weights


@functools.cache
def _chi_squared(df: int, nodes: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Return quantiles of χ² with their weights, denser where a small value gives a wide interval; (nodes,) each."""
    steps = (np.arange(nodes) + 0.5) / nodes
    weights = 4 * steps**3
    return 2 * special.gammaincinv(df / 2, steps**4), weights / weights.sum()


def _two_sided(distances: np.ndarray, errors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return P(|X| > distance) of mixtures of normals around 0 with these standard errors; (J,)."""
    return np.asarray((2 * special.ndtr(-distances[:, None] / errors)) @ weights)


def half_widths(errors: np.ndarray, weights: np.ndarray, alpha: float) -> np.ndarray:
    """Return half the widths of intervals, by bisection.

    Args:
        errors: (J, N) standard errors of J mixtures of normals.
        weights: (N,) weights of the normals.
        alpha: The probability outside the interval.

    Returns:
        (J,) half-widths.
    """
    low: np.ndarray = np.zeros(len(errors))
    high: np.ndarray = 40 * errors.max(axis=1)
    for _ in range(45):
        middle = (low + high) / 2
        outside = _two_sided(middle, errors, weights) > alpha
        low, high = np.where(outside, middle, low), np.where(outside, high, middle)
    return high


def fold_ratio(folds: int) -> float:
    """Return n_test/n_train of k-fold cross-validation, 1/(k - 1). ValueError for one fold, a hold-out of any ratio."""
    if folds < 2:
        raise ValueError(f"k folds with k >= 2 have a ratio of 1/(k-1), not {folds}")
    return 1 / (folds - 1)


def sign_flip(diffs: Sequence[float], seed: int = 0, permutations: int = 10_000) -> float:
    """Compute the two-sided p of the sign-flip permutation test: the share of patterns with a sum at least as far from 0.

    Fisher, "The Design of Experiments" (1935), section 21. All 2^J patterns are counted while there are at most 2^16;
    beyond, `permutations` are drawn from `seed` and p = (1 + hits) / (1 + permutations), never 0 (Phipson and Smyth,
    2010). **Optimistic**: it assumes that the sign of each run's difference is exchangeable, but runs share training data.

    Args:
        diffs: (J,) differences of J runs.
        seed: Seed of the drawn patterns.
        permutations: Number of drawn patterns.

    Returns:
        p, above 0 and at most 1.

    Raises:
        ValueError: There are no differences or permutations, or a difference is not finite.
    """
    if permutations < 1:
        raise ValueError(f"at least 1 permutation is needed, not {permutations}")
    d = _checked(diffs)
    reach = abs(float(d.sum())) - 1e-10 * float(np.abs(d).sum())  # equal sums stay equal under rounding
    if 2 ** len(d) <= EXACT_PATTERNS:
        # A pattern and its negative give equal statistics, so one half (last sign +) has the same share.
        bits = (np.arange(2 ** (len(d) - 1))[:, None] >> np.arange(len(d))) & 1
        return float(np.mean(np.abs((1.0 - 2.0 * bits) @ d) >= reach))
    signs = 1.0 - 2.0 * np.random.default_rng(seed).integers(0, 2, size=(permutations, len(d)))
    return (1 + int(np.count_nonzero(np.abs(signs @ d) >= reach))) / (1 + permutations)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjust p-values by Holm's step-down procedure, in their order: p̃_(i) = max over j <= i of min(1, (m - j + 1)·p_(j)).

    Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statistics 6 (1979). A NaN stays NaN, and
    still counts among the m hypotheses (as if it were 1), so an exit without an interval never helps the others.
    """
    if any(not (math.isnan(p) or 0 <= p <= 1) for p in p_values):
        raise ValueError(f"p-values lie between 0 and 1: {list(p_values)}")
    m = len(p_values)
    adjusted = [math.nan] * m
    running = 0.0
    defined = (i for i in range(m) if not math.isnan(p_values[i]))
    for rank, i in enumerate(sorted(defined, key=lambda i: p_values[i])):
        running = max(running, min(1.0, (m - rank) * p_values[i]))
        adjusted[i] = running
    return tuple(adjusted)


def holm_intervals(
    samples: Sequence[Sequence[float]], test_train_ratio: float, confidence: float = 0.95
) -> tuple[Interval, ...]:
    """Compute one :func:`corrected_t` per sample as :func:`simultaneous` intervals.

    Args:
        samples: (m, J) differences.
        test_train_ratio: See :func:`corrected_t`.
        confidence: The simultaneous confidence of the m intervals.
    """
    level = 1 - (1 - confidence) / max(1, len(samples))
    return simultaneous([corrected_t(sample, test_train_ratio, level) for sample in samples], confidence)


def simultaneous(singles: Sequence[Interval], confidence: float) -> tuple[Interval, ...]:
    """Turn intervals into simultaneous ones (Bonferroni), with **Holm-adjusted p**.

    Each of the m intervals is to have level 1 - (1 - confidence)/m, so all hold together with at least `confidence` (if each
    does). Intervals at Holm's step-down levels do not guarantee this, hence Bonferroni's. Holm's test has more power, and
    may reject where the interval still contains 0.

    Args:
        singles: The m intervals at the level 1 - (1 - confidence)/m.
        confidence: The simultaneous confidence.
    """
    adjusted = holm([single.p for single in singles])
    return tuple(dataclasses.replace(s, p=p, confidence=confidence) for s, p in zip(singles, adjusted, strict=True))


@dataclasses.dataclass(frozen=True)
class Judge:
    """The settings of a comparison, and its tests under them.

    Attributes:
        test_train_ratio: Validation samples of a fold / its training samples.
        confidence: Confidence of the intervals.
        seed: Seed of the sign-flip test.
        permutations: Patterns that the sign-flip test draws.
    """

    test_train_ratio: float
    confidence: float = 0.95
    seed: int = 0
    permutations: int = 10_000

    def interval(self, diffs: Mapping[tuple[int, int], float], sampling: float = 0.0) -> Interval:
        """:func:`random_effects` of these differences."""
        return random_effects(diffs, self.test_train_ratio, self.confidence, sampling)

    def intervals(
        self, samples: Sequence[Mapping[tuple[int, int], float]], sampling: Sequence[float]
    ) -> tuple[Interval, ...]:
        """:func:`simultaneous` intervals of several differences of the same runs."""
        level = 1 - (1 - self.confidence) / max(1, len(samples))
        singles = [
            random_effects(diffs, self.test_train_ratio, level, v) for diffs, v in zip(samples, sampling, strict=True)
        ]
        return simultaneous(singles, self.confidence)

    def sign_flip(self, diffs: Sequence[float]) -> float:
        """:func:`sign_flip` of these differences; optimistic."""
        return sign_flip(diffs, self.seed, self.permutations)


def _checked(diffs: Sequence[float]) -> np.ndarray:
    d = np.asarray(diffs, dtype=np.float64)
    if d.ndim != 1 or not len(d):
        raise ValueError("at least one difference is needed, in one dimension")
    if not np.isfinite(d).all():
        raise ValueError(f"differences must be finite: {d.tolist()}")
    return d
