"""Statistics of paired differences, one number per (seed, fold) cell: pure functions of the differences.

Cells share training data, so the ordinary paired t-test and the sign-flip test are optimistic: both take differences
for independent. :func:`corrected_t` is the one to decide by.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import special

#: Up to so many sign patterns are all enumerated; beyond, they are drawn.
EXACT_PATTERNS = 2**16


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean difference with its interval at `confidence` and its two-sided p-value, from so many cells.

    `low`, `high` and `p` are NaN where nothing can be said: fewer than two cells, or the same difference in every cell.
    """

    mean: float
    low: float
    high: float
    p: float
    cells: int
    confidence: float = 0.95

    @property
    def known(self) -> bool:
        """Whether there is an interval at all."""
        return not math.isnan(self.low)


def corrected_t(diffs: Sequence[float], test_train_ratio: float, confidence: float = 0.95) -> Interval:
    """The corrected resampled t: t = d̄ / √((1/J + n_test/n_train)·s²) with J - 1 degrees of freedom.

    Nadeau and Bengio, "Inference for the generalization error", Machine Learning 52 (2003), section 3. J is the number
    of cells, s² the sample variance (ddof = 1), n_test/n_train the ratio of held-out to training rows (see
    :func:`fold_ratio`); ratio 0 is the ordinary one-sample t. With J = 1, or s = 0 (up to rounding), the spread is
    unknown and so is the interval: a few equal differences of coarse scores aren't certainty.
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
    """n_test/n_train of k-fold cross-validation, 1/(k - 1). One fold is a hold-out, whose ratio must be known."""
    if folds < 2:
        raise ValueError(f"k folds with k >= 2 have a ratio of 1/(k-1), not {folds}")
    return 1 / (folds - 1)


def sign_flip(diffs: Sequence[float], seed: int = 0, permutations: int = 10_000) -> float:
    """Two-sided p of the sign-flip permutation test: the share of sign patterns with a sum at least as far from 0.

    Fisher, "The Design of Experiments" (1935), section 21. All 2^J patterns are counted while there are at most 2^16;
    beyond, `permutations` are drawn from `seed` and p = (1 + hits) / (1 + permutations), never 0 (Phipson and Smyth,
    2010).
    **Optimistic**: it takes cells for exchangeable under a flip of one sign, but cells share training data.
    """
    if permutations < 1:
        raise ValueError(f"at least 1 permutation is needed, not {permutations}")
    d = _checked(diffs)
    reach = abs(float(d.sum())) - 1e-10 * float(np.abs(d).sum())  # equal sums stay equal under rounding
    if 2 ** len(d) <= EXACT_PATTERNS:
        # A pattern and its negative reach equally far, so that half of them (the last sign +) give the same share.
        bits = (np.arange(2 ** (len(d) - 1))[:, None] >> np.arange(len(d))) & 1
        return float(np.mean(np.abs((1.0 - 2.0 * bits) @ d) >= reach))
    signs = 1.0 - 2.0 * np.random.default_rng(seed).integers(0, 2, size=(permutations, len(d)))
    return (1 + int(np.count_nonzero(np.abs(signs @ d) >= reach))) / (1 + permutations)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down adjusted p-values, in the order given: p̃_(i) = max over j <= i of min(1, (m - j + 1)·p_(j)).

    Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statistics 6 (1979). A NaN stays NaN, and
    still counts among the m hypotheses (as if it were 1), so that an exit without an interval never helps the others.
    """
    if any(not (math.isnan(p) or 0 <= p <= 1) for p in p_values):
        raise ValueError(f"p-values lie between 0 and 1: {list(p_values)}")
    m = len(p_values)
    adjusted = [math.nan] * m
    running = 0.0
    known = (i for i in range(m) if not math.isnan(p_values[i]))
    for rank, i in enumerate(sorted(known, key=lambda i: p_values[i])):
        running = max(running, min(1.0, (m - rank) * p_values[i]))
        adjusted[i] = running
    return tuple(adjusted)


def holm_intervals(
    samples: Sequence[Sequence[float]], test_train_ratio: float, confidence: float = 0.95
) -> tuple[Interval, ...]:
    """One corrected t per sample (an exit), with **Holm-adjusted p-values** and **Bonferroni simultaneous intervals**.

    Each of the m intervals has level 1 - (1 - confidence)/m, so that all hold together with at least `confidence` (if
    each does). Intervals at Holm's step-down levels don't keep that promise, hence Bonferroni's; Holm's test is the
    sharper of the two, and may reject where the interval still touches 0.
    """
    if not samples:
        return ()
    level = 1 - (1 - confidence) / len(samples)
    singles = [corrected_t(sample, test_train_ratio, level) for sample in samples]
    adjusted = holm([single.p for single in singles])
    return tuple(dataclasses.replace(s, p=p, confidence=confidence) for s, p in zip(singles, adjusted, strict=True))


@dataclasses.dataclass(frozen=True)
class Judge:
    """The settings of a comparison, and the three tests under them."""

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
