"""Scores beside that of the majority class: whether a model has learned anything, and how certain that is.

A metric that rewards the majority class (accuracy; F1 of a frequent positive class) gives a high score to a model that
answers one class throughout. So every score stands beside that of the best constant prediction on the same samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from leebert.metrics import METRICS, collapsed, per_exit

#: What scores say of a model: an exit, or the mean over exits, is above the majority class by more than chance would
#: explain; that can't be told; or every exit predicts a single class.
Verdict = Literal["learned", "not distinguishable", "collapsed"]

CONFIDENCE = 0.95

#: What to try where nothing was learned.
ADVICE = (
    "try more epochs (training.max_epochs), a larger λ1 (training.lr_theta), or another pooling (model.pooling; pooling of a "
    "search space)"
)


@dataclasses.dataclass(frozen=True)
class AgainstMajority:
    """What all exits score beside the majority class. Scores, margins and errors are fractions.

    label: the class whose constant prediction scores best on these samples (of equals the most frequent one).
    score: what that prediction scores. chance: what uniform guesses score. samples: how many there are.
    margins, errors: (M,) each exit's score minus `score`, and the standard error of that paired difference.
    margin, error: the same of the mean over exits. collapsed: the exits (from 0) that predict a single class.
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
        """From :meth:`as_dict`."""
        values: dict[str, Any] = {f.name: plain[f.name] for f in dataclasses.fields(cls)}
        return cls(**values | {name: tuple(v) for name, v in values.items() if isinstance(v, list)})

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with the verdict and the 95 % interval of the mean margin."""
        low, high = self.interval
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}
        return {**plain, "low": round(low, 6), "high": round(high, 6), "verdict": self.verdict}

    @property
    def all_collapsed(self) -> bool:
        """Whether every exit predicts a single class."""
        return len(self.collapsed) == len(self.margins)

    @property
    def above(self) -> bool:
        """Whether any exit scores above the majority class on these samples, by however little."""
        return max(self.margins) > 0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean margin."""
        off = _quantile(1) * self.error
        return self.margin - off, self.margin + off

    @property
    def verdict(self) -> Verdict:
        """`learned` where the interval of the mean margin lies above 0, or an exit's does (Bonferroni over exits)."""
        if self.all_collapsed:
            return "collapsed"
        off = _quantile(len(self.margins))
        exits = any(m - off * e > 0 for m, e in zip(self.margins, self.errors, strict=True))
        return "learned" if exits or self.interval[0] > 0 else "not distinguishable"


def against_majority(logits: np.ndarray, labels: np.ndarray, metric: str) -> AgainstMajority | None:
    """All exits beside the best constant prediction.

    The standard errors are the delta method's on the paired difference, sample by sample: exact for accuracy, and within
    a few per cent of the paired bootstrap's for the others from some hundred samples on.

    Args:
        logits: (M, N, K).
        labels: (N,) class ids.
        metric: a key of :data:`leebert.metrics.METRICS`.

    Returns:
        The margins; None where all samples have one label, of which nothing can be learned.
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
    """Several runs as one: means over runs, for each validation fold the runs (seeds) scored on it.

    Folds have no sample in common, so their errors are independent; the runs of one fold share its samples, so theirs
    are taken as one. An exit counts as collapsed where it is so in every run.
    """
    runs = [run for fold in by_fold for run in fold]
    labels = [run.label for run in runs]

    def mean(values: Callable[[AgainstMajority], Any]) -> Any:
        return np.mean([values(run) for run in runs], axis=0)

    def error(values: Callable[[AgainstMajority], Any]) -> Any:
        # A fold weighs as its runs do in the mean.
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
    """The normal quantile of two-sided intervals that hold together at :data:`CONFIDENCE` for so many tests."""
    return NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / (2 * tests))


def _standard_error(paired: np.ndarray) -> np.ndarray:
    """Of the mean over the last axis, (…, N) → (…,)."""
    n = paired.shape[-1]
    return np.sqrt(np.square(paired).sum(axis=-1) / (n * (n - 1)))


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) + 0.0 for value in values]


# Words, made when they are shown.


def exits_in_words(exits: Iterable[int]) -> str:
    """`exit 1`, `exits 1, 2`: exits (from 0) by their numbers."""
    numbers = [str(e + 1) for e in sorted(exits)]
    return f"exit{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def single_class(exits: Iterable[int], num_exits: int) -> str:
    """That these exits (from 0) predict a single class; that this is common early is said of shallow exits only."""
    found = sorted(exits)
    verb = "predict" if len(found) > 1 else "predicts"
    often = " (common early in training)" if found[-1] < num_exits // 2 else ""
    return f"{exits_in_words(found)} {verb} a single class on the whole validation fold{often}"


def margin_in_words(margin: float, interval: tuple[float, float]) -> str:
    """`+1.20 points, 95 % CI 0.40 to 2.00`."""
    low, high = (round(100 * end, 2) + 0.0 for end in interval)
    return f"{round(100 * margin, 2) + 0.0:+.2f} points, 95 % CI {low:.2f} to {high:.2f}"


def in_words(against: AgainstMajority, names: Sequence[str] = (), advice: str = ADVICE) -> str:
    """The verdict in a sentence or two, with what to try where nothing was learned. names: of the classes, by id."""
    named = f" ({names[against.label]})" if against.label < len(names) else ""
    scores = f"the majority class{named} scores {100 * against.score:.2f}, chance {100 * against.chance:.2f}"
    margin = margin_in_words(against.margin, against.interval)
    if against.verdict == "collapsed":
        every = "every exit predicts" if len(against.margins) > 1 else "the exit predicts"
        return f"nothing was learned: {every} a single class; {scores}; {advice}"
    of = "mean over exits" if len(against.margins) > 1 else "score"
    stuck = f"; {exits_in_words(against.collapsed)} predict a single class" if against.collapsed else ""
    if len(against.collapsed) == 1:
        stuck = stuck.replace("predict ", "predicts ")
    if against.verdict == "learned":
        deepest = _best_exit(against) if against.interval[0] <= 0 else ""
        return f"learned: {of} {margin} against the majority class; {scores}{deepest}{stuck}"
    return f"not distinguishable from the majority class: {of} {margin}; {scores}{stuck}; {advice}"


def _best_exit(against: AgainstMajority) -> str:
    """The exit that is furthest above the majority class, where the mean over exits is not."""
    best = max(range(len(against.margins)), key=lambda i: against.margins[i])
    return f"; exit {best + 1} is {100 * against.margins[best]:+.2f} points above it"
