"""Compare scores with the majority class: whether a model has learned anything, and how certain that is.

Metrics such as accuracy, or F1 of a frequent positive class, give a high score to a model that predicts a single class.
So every score is compared with the best constant prediction on the same samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from leebert.metrics import METRICS, collapsed, per_exit
from leebert.points import ends_in_points, in_points

#: `learned`: the mean over exits, or an exit, is significantly above the majority class. `collapsed`: every exit predicts
#: a single class. `not distinguishable`: neither.
Verdict = Literal["learned", "not distinguishable", "collapsed"]

CONFIDENCE = 0.95

#: The advice for a model that has not learned.
ADVICE = (
    "try more epochs (training.max_epochs), a larger λ1 (training.lr_theta), or another pooling (model.pooling; pooling of a "
    "search space)"
)


@dataclasses.dataclass(frozen=True)
class AgainstMajority:
    """The scores of all exits compared with the majority class. Scores, margins and errors are fractions.

    Attributes:
        label: The class whose constant prediction scores best; of equal ones, the most frequent.
        score: Score of that constant prediction.
        chance: Score of uniform random guesses.
        samples: Number of samples.
        margins: (M,) each exit's score minus `score`.
        errors: (M,) standard errors of these paired differences.
        margin: Mean over exits minus `score`.
        error: Its standard error.
        collapsed: The exits, from 0, that predict a single class.
    """

    label: int
    score: float
    chance: float
    samples: int
    margins: tuple[float, ...]
    errors: tuple[float, ...]
    margin: float
    error: float
    collapsed: tuple[int, ...]

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> AgainstMajority:
        """Rebuild a comparison from :meth:`as_dict`."""
        values: dict[str, Any] = {f.name: plain[f.name] for f in dataclasses.fields(cls)}
        return cls(**values | {name: tuple(v) for name, v in values.items() if isinstance(v, list)})

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, with the verdict and the 95 % CI of the mean margin."""
        low, high = self.interval
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}
        return {**plain, "low": round(low, 6), "high": round(high, 6), "verdict": self.verdict}

    @property
    def all_collapsed(self) -> bool:
        """Whether every exit predicts a single class."""
        return len(self.collapsed) == len(self.margins)

    @property
    def above(self) -> bool:
        """Whether any exit scores above the majority class on these samples, significantly or not."""
        return max(self.margins) > 0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % CI of the mean margin."""
        off = _quantile(1) * self.error
        return self.margin - off, self.margin + off

    @property
    def verdict(self) -> Verdict:
        """`learned` if the interval of the mean margin, or of an exit's margin (Bonferroni), lies above 0."""
        if self.all_collapsed:
            return "collapsed"
        off = _quantile(len(self.margins))
        exits = any(m - off * e > 0 for m, e in zip(self.margins, self.errors, strict=True))
        return "learned" if exits or self.interval[0] > 0 else "not distinguishable"


def against_majority(logits: np.ndarray, labels: np.ndarray, metric: str) -> AgainstMajority | None:
    """Compare all exits with the best constant prediction.

    Standard errors follow the delta method for paired differences: exact for accuracy, and within a few per cent of the
    paired bootstrap for the other metrics with at least a few hundred samples.

    Args:
        logits: (M, N, K).
        labels: (N,) class ids.
        metric: a key of :data:`leebert.metrics.METRICS`.

    Returns:
        The comparison; None if all samples have one label, so that scores can't show learning.
    """
    if (labels == labels[:1]).all():
        return None
    row = METRICS[metric]
    label, score = row.majority(labels)
    predicted = logits.argmax(axis=-1)  # (M, N)
    reference = row.influence(labels, np.full_like(labels, label))
    paired = np.stack([row.influence(labels, p) - reference for p in predicted])  # (M, N), each of mean 0
    margins = per_exit(metric, labels, logits)["score"] - score
    return AgainstMajority(
        label=label,
        score=round(score, 6),
        chance=round(row.chance(labels, logits.shape[-1]), 6),
        samples=len(labels),
        margins=tuple(_rounded(margins)),
        errors=tuple(_rounded(_standard_error(paired))),
        margin=round(float(margins.mean()), 6),
        error=round(float(_standard_error(paired.mean(axis=0))), 6),
        collapsed=tuple(np.flatnonzero(collapsed(logits)).tolist()),
    )


def pooled(by_fold: Sequence[Sequence[AgainstMajority]]) -> AgainstMajority:
    """Average the comparisons of several runs.

    Folds share no samples, so their errors are independent. The runs of one fold share its samples, so their errors count
    as fully correlated. An exit counts as collapsed if it is collapsed in every run.

    Args:
        by_fold: For each validation fold, the comparisons of its runs (seeds).
    """
    runs = [run for fold in by_fold for run in fold]
    labels = [run.label for run in runs]

    def mean(values: Callable[[AgainstMajority], Any]) -> Any:
        return np.mean([values(run) for run in runs], axis=0)

    def error(values: Callable[[AgainstMajority], Any]) -> Any:
        # A fold's weight is that of its runs in the mean.
        shares = np.stack([np.sum([values(run) for run in fold], axis=0) / len(runs) for fold in by_fold])
        return np.sqrt(np.square(shares).sum(axis=0))

    return AgainstMajority(
        label=max(labels, key=lambda k: (labels.count(k), -k)),
        score=round(float(mean(lambda run: run.score)), 6),
        chance=round(float(mean(lambda run: run.chance)), 6),
        samples=sum(fold[0].samples for fold in by_fold),
        margins=tuple(_rounded(mean(lambda run: run.margins))),
        errors=tuple(_rounded(error(lambda run: run.errors))),
        margin=round(float(mean(lambda run: run.margin)), 6),
        error=round(float(error(lambda run: run.error)), 6),
        collapsed=tuple(sorted(set.intersection(*(set(run.collapsed) for run in runs)))),
    )


def _quantile(tests: int) -> float:
    """The normal quantile of two-sided intervals with joint level :data:`CONFIDENCE` over this number of tests."""
    return NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / (2 * tests))


def _standard_error(paired: np.ndarray) -> np.ndarray:
    """Standard error of the mean over the last axis, (…, N) → (…,)."""
    n = paired.shape[-1]
    error: np.ndarray = np.sqrt(np.square(paired).sum(axis=-1) / (n * (n - 1)))
    return error


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) + 0.0 for value in values]


def exits_in_words(exits: Iterable[int]) -> str:
    """Format exits (from 0) by their numbers from 1: `exit 1`, `exits 1, 2`."""
    numbers = [str(e + 1) for e in sorted(exits)]
    return f"exit{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def single_class(exits: Iterable[int], num_exits: int) -> str:
    """Write that these exits (from 0) predict a single class; for shallow exits, that this is common early in training."""
    numbers = sorted(exits)
    verb = "predict" if len(numbers) > 1 else "predicts"
    common = " (common early in training)" if numbers[-1] < num_exits // 2 else ""
    return f"{exits_in_words(numbers)} {verb} a single class on the whole validation fold{common}"


def margin_in_words(margin: float, interval: tuple[float, float]) -> str:
    """Format a margin and its interval, fractions: `+1.20 points, 95 % CI 0.40 to 2.00`."""
    return f"{in_points(margin)} points, 95 % CI {ends_in_points(*interval)}"


def in_words(against: AgainstMajority, names: Sequence[str] = (), advice: str = ADVICE) -> str:
    """Write the verdict in one line, with advice if the model has not learned.

    Args:
        against: The comparison.
        names: Names of the classes, by id.
        advice: What to try.
    """
    named = f" ({names[against.label]})" if against.label < len(names) else ""
    scores = f"the majority class{named} scores {100 * against.score:.2f}, chance {100 * against.chance:.2f}"
    margin = margin_in_words(against.margin, against.interval)
    if against.verdict == "collapsed":
        every = "every exit predicts" if len(against.margins) > 1 else "the exit predicts"
        return f"nothing was learned: {every} a single class; {scores}; {advice}"
    quantity = "mean over exits" if len(against.margins) > 1 else "score"
    verb = "predicts" if len(against.collapsed) == 1 else "predict"
    single = f"; {exits_in_words(against.collapsed)} {verb} a single class" if against.collapsed else ""
    if against.verdict == "learned":
        best = _best_exit(against) if against.interval[0] <= 0 else ""
        return f"learned: {quantity} minus majority class: {margin}; {scores}{best}{single}"
    return f"not significantly above the majority class: {quantity} {margin}; {scores}{single}; {advice}"


def _best_exit(against: AgainstMajority) -> str:
    """The exit with the largest margin over the majority class."""
    best = max(range(len(against.margins)), key=lambda i: against.margins[i])
    return f"; exit {best + 1} is {100 * against.margins[best]:+.2f} points above it"
