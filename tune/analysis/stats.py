"""Statistics of paired differences, one number per run (one seed, one fold): pure functions of the differences.

Runs share training data, so the ordinary paired t-test and the sign-flip test are optimistic: both assume independent
differences. Decide by :func:`corrected_t`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

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
    """

    mean: float
    low: float
    high: float
    p: float
    cells: int
    confidence: float = 0.95

    @property
    def defined(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low)

    @property
    def useful(self) -> bool:
        """Whether there is an interval of enough runs (:data:`USEFUL`) to be shown."""
        return self.defined and self.cells >= USEFUL

    def missing(self, unit: str = "run") -> str:
        """Return why no interval is shown; empty if one is.

        Args:
            unit: What the differences are of, `run` or `task`.
        """
        if self.cells < USEFUL:
            return (
                f"{self.cells} {unit}{'s are' if self.cells > 1 else ' is'} too few for an interval (at least {USEFUL})"
            )
        return "" if self.defined else f"every {unit} shows the same difference, so there is no interval"

    def significant(self, p_folds: float | None = None) -> bool | None:
        """Return whether the difference is significant over runs and, if folds have several seeds, over folds too.

        Args:
            p_folds: The p-value over folds, with seeds averaged; None if no fold has two seeds.

        Returns:
            The answer; None if no interval is shown, as nothing can be said.
        """
        if not self.useful:
            return None
        alpha = 1 - self.confidence
        return self.p < alpha and (p_folds is None or p_folds < alpha)


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
    return Interval(mean, mean - half, mean + half, p, cells, confidence)


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
    """Compute one corrected t per sample (an exit), with **Holm-adjusted p** and **Bonferroni simultaneous intervals**.

    Each of the m intervals has level 1 - (1 - confidence)/m, so all hold together with at least `confidence` (if each
    does). Intervals at Holm's step-down levels do not guarantee this, hence Bonferroni's. Holm's test has more power, and
    may reject where the interval still contains 0.

    Args:
        samples: (m, J) differences.
        test_train_ratio: See :func:`corrected_t`.
        confidence: The simultaneous confidence of the m intervals.
    """
    if not samples:
        return ()
    level = 1 - (1 - confidence) / len(samples)
    singles = [corrected_t(sample, test_train_ratio, level) for sample in samples]
    adjusted = holm([single.p for single in singles])
    return tuple(dataclasses.replace(s, p=p, confidence=confidence) for s, p in zip(singles, adjusted, strict=True))


@dataclasses.dataclass(frozen=True)
class Judge:
    """The settings of a comparison, and its three tests under them.

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

    def interval(self, diffs: Sequence[float]) -> Interval:
        """:func:`corrected_t` of these differences."""
        return corrected_t(diffs, self.test_train_ratio, self.confidence)

    def intervals(self, samples: Sequence[Sequence[float]]) -> tuple[Interval, ...]:
        """:func:`holm_intervals` of these samples."""
        return holm_intervals(samples, self.test_train_ratio, self.confidence)

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
