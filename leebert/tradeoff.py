"""Score against mean exit layer: one curve per exit criterion, replayed from recorded logits without running a model.

A criterion compares a value with its threshold, and the value does not depend on the threshold. So each sample has, for
each exit, a critical value beyond which it has exited there. The sorted critical values give every mean exit layer that a
threshold can reach. A curve keeps the values nearest to a fixed grid of layers, and both sides of every gap, so that its
points are spread evenly over layers.

Training reports, MLflow, best files, `evaluate`, calibration and refits read layers and scores from these curves. The
module imports torch only when it replays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from leebert.deprecated import renamed_arguments, warn_renamed
from leebert.errors import ConfigError
from leebert.exits import CRITERIA, REPORTED, named, usable
from leebert.exits.criterion import THRESHOLD_SLACK, Criterion

if TYPE_CHECKING:
    from leebert.evaluate import RecordedLogits

#: The default largest loss against the full model's score, as a fraction: one point.
ALLOWED_LOSS = 0.01

#: The default target layer speed-up, near the one at which the paper compares.
SPEED_UP = 2.0

#: Relative difference in layers of neighbours on a curve, unless no threshold lies between them.
STEP = 0.02

#: Steps per layer of the grid of a mean over runs.
STEPS_PER_LAYER = 10

# Values within this relative or absolute distance count as equal, since float32 can't distinguish them.
_APART, _TINY = 1e-6, 1e-30

# Decimals of saved curves, and the tolerance of a comparison with a bound.
_DIGITS, _ROUNDING = 9, 1e-8


@dataclasses.dataclass(frozen=True)
class Point:
    """One exit criterion at one threshold on recorded samples.

    Attributes:
        criterion: Name of the exit criterion.
        threshold: The threshold; None for criteria without one.
        patience: Second parameter; None for criteria without one.
        layers: Mean exit layer.
        speed_up: Layer speed-up, depth / `layers`.
        measures: The task's measures and `score`, as fractions; empty for unlabelled samples.
        exits: (M,) number of samples that exit at each exit.
    """

    criterion: str
    threshold: float | None
    patience: int | None
    layers: float
    speed_up: float
    measures: dict[str, float]
    exits: tuple[int, ...]

    @property
    def strategy(self) -> str:
        """The former name of `criterion`."""
        warn_renamed("Point.strategy", "criterion")
        return self.criterion

    @property
    def saving(self) -> float:
        """DeeBERT's expected time saving, 1 − Σ i·N_i / Σ M·N_i: the share of all layers that is not executed."""
        return 1 - 1 / self.speed_up

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, with the saving."""
        return {**dataclasses.asdict(self), "saving": self.saving, "exits": list(self.exits)}


@dataclasses.dataclass(frozen=True)
class Tradeoff:
    """Recorded samples under one exit criterion at T thresholds, from the fastest to the full model.

    The last point is the full model, where no sample exits early. Between two neighbours the score is interpolated in
    layers, which corresponds to drawing one of the two thresholds at random for every sample (exact for accuracy).

    Attributes:
        criterion: Name of the exit criterion.
        layers: (T,) mean exit layer, rising; strictly so unless the criterion's thresholds are whole numbers.
        measures: Each of the task's measures and `score`, (T,); empty for unlabelled samples.
        thresholds: (T,) threshold of each point.
        counts: (T, M) number of samples that exit at each exit.
        exit_layers: (M,) layers below each exit.
        depth: Layers of the unreduced network, the reference of speed-ups.
        patience: Second parameter of criteria that have one.
        first_exit: Score of the first exit alone; None for unlabelled samples.
        requested: (T,) marks points that exist only for a requested speed-up; None: there are none. Methods that read by
            score skip these points, so that their result does not depend on the requested speed-ups.
    """

    criterion: str
    layers: np.ndarray
    measures: Mapping[str, np.ndarray]
    thresholds: np.ndarray
    counts: np.ndarray
    exit_layers: tuple[int, ...]
    depth: int
    patience: int | None = None
    first_exit: float | None = None
    requested: np.ndarray | None = None

    @property
    def name(self) -> str:
        """The criterion in words, with its second parameter."""
        return named(self.criterion, self.patience)

    @property
    def labelled(self) -> bool:
        """Whether the points have scores."""
        return "score" in self.measures

    @property
    def scores(self) -> np.ndarray:
        """(T,) score of each point, as a fraction.

        Raises:
            ConfigError: The samples have no labels.
        """
        if not self.labelled:
            raise ConfigError(
                f"{self.name}: these samples have no labels, so they have no score; give labelled samples"
            )
        return self.measures["score"]

    @property
    def fastest(self) -> float:
        """The largest layer speed-up of the curve."""
        return self.depth / float(self.layers[0])

    @property
    def slowest(self) -> float:
        """The layer speed-up of the full model: above 1 if its last exit follows fewer layers than `depth`."""
        return self.depth / self.exit_layers[-1]

    def __len__(self) -> int:
        return len(self.layers)

    def point(self, index: int) -> Point:
        """Return the point at `index`, 0 being the fastest and −1 the full model."""
        layers = float(self.layers[index])
        return Point(
            self.criterion, float(self.thresholds[index]), self.patience, layers, self.depth / layers,
            {name: float(values[index]) for name, values in self.measures.items()},
            tuple(int(count) for count in self.counts[index]),
        )  # fmt: skip

    def __iter__(self) -> Iterator[Point]:
        return (self.point(i) for i in range(len(self)))

    def within(self, loss: float = ALLOWED_LOSS) -> Point:
        """Find the point of fewest layers with a small drop in score.

        Args:
            loss: Largest drop from the full model's score, as a fraction.

        Returns:
            The point; the full model if no other qualifies.

        Raises:
            ConfigError: The samples have no labels.
        """
        return self.point(int(self._regular[_fewest(self.scores[self._regular], loss)]))

    @property
    def _regular(self) -> np.ndarray:
        """Indices of the points that do not depend on requested speed-ups."""
        return np.arange(len(self)) if self.requested is None else np.flatnonzero(~self.requested)

    def drawn(self) -> tuple[np.ndarray, np.ndarray]:
        """Return layers, rising, and scores of the points that do not depend on requested speed-ups."""
        return self.layers[self._regular], self.scores[self._regular]

    def nearest(self, speed_up: float) -> Point:
        """Return the point whose layer speed-up is nearest to `speed_up`, by ratio."""
        return self.point(int(np.abs(np.log(self.layers * speed_up / self.depth)).argmin()))

    def reaches(self, speed_up: float) -> bool:
        """Whether a score at this layer speed-up can be read."""
        return bool(self.depth / speed_up >= self.layers[0] - _ROUNDING)

    def at_speed_up(self, speed_up: float) -> float:
        """Interpolate the score at a layer speed-up.

        Args:
            speed_up: The layer speed-up, depth / mean exit layer.

        Returns:
            The score, as a fraction; the full model's if the full model is faster.

        Raises:
            ConfigError: The criterion does not reach the speed-up.
        """
        if not self.reaches(speed_up):
            raise ConfigError(
                f"speed-up {speed_up:g}: exit criterion {self.criterion} on {len(self.exit_layers)} exits reaches layer "
                f"speed-ups from {self.slowest:.3g} to {self.fastest:.2f}; choose one in this range"
            )
        return float(np.interp(self.depth / speed_up, *self.drawn()))

    def area(self) -> float:
        """Compute the mean score between the layers of the first and the last exit.

        The curve is extended to the first exit alone. Otherwise a criterion that starts late would have an advantage.

        Returns:
            The mean, as a fraction.
        """
        first, last = self.exit_layers[0], self.exit_layers[-1]
        if first == last:
            return float(self.scores[-1])
        assert self.first_exit is not None  # there are scores
        layers, scores = (
            np.append(at, values) for at, values in zip((first, self.first_exit), self.drawn(), strict=True)
        )
        return float(np.trapezoid(scores, layers)) / (last - first)

    def in_steps(self, per_layer: int | None = None) -> list[Point]:
        """Select the points for a table: those nearest to evenly spaced mean exit layers, and both ends.

        Args:
            per_layer: Points per layer; None: 2 up to six exits, else 1.

        Returns:
            The points, fastest first; all points of criteria with whole-number thresholds.
        """
        per_layer = per_layer or (2 if len(self.exit_layers) <= 6 else 1)
        if CRITERIA[self.criterion].whole:
            return list(self)
        targets = np.arange(math.ceil(self.layers[0] * per_layer), self.layers[-1] * per_layer) / per_layer
        chosen = {0, len(self) - 1, *(int(np.abs(self.layers - layers).argmin()) for layers in targets)}
        return [self.point(i) for i in sorted(chosen)]

    def as_dict(self) -> dict[str, Any]:
        """Return layers and scores as JSON-ready values, about two kilobytes; see :meth:`of`."""
        return {
            "criterion": self.criterion, "patience": self.patience, "depth": self.depth,
            "exit_layers": list(self.exit_layers), "first_exit": self.first_exit,
            "layers": self.layers.round(_DIGITS).tolist(), "score": self.scores.round(_DIGITS).tolist(),
        }  # fmt: skip

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Tradeoff:
        """Rebuild a curve from JSON-ready values.

        Args:
            plain: What :meth:`as_dict` returned.

        Returns:
            The curve with scores and layers, but without thresholds (NaN) and counts ((T, 0)).
        """
        layers = np.array(plain["layers"], float)
        return cls(
            plain["criterion"], layers, {"score": np.array(plain["score"], float)}, np.full(len(layers), np.nan),
            np.empty((len(layers), 0), int), tuple(plain["exit_layers"]), int(plain["depth"]), plain["patience"],
            plain["first_exit"],
        )  # fmt: skip


def tradeoff(
    recorded: RecordedLogits,
    criterion: str = REPORTED,
    patience: int | None = None,
    *,
    metric: str | None = None,
    speed_ups: Iterable[float] = (),
) -> Tradeoff:
    """Compute score against mean exit layer of one exit criterion, from recorded logits.

    Args:
        recorded: Logits (M, N, K) of N samples at M exits, with or without labels.
        criterion: Name of the exit criterion (:data:`leebert.exits.CRITERIA`).
        patience: Its second parameter; None: the default.
        metric: Name of the task's metric; None: no scores.
        speed_ups: Layer speed-ups to which the curve also includes the nearest possible points.

    Returns:
        The curve, from the fastest point to the full model. Scores need `metric` and labels.

    Raises:
        ConfigError: The criterion does not exist or has no threshold, or the model has too few exits or classes for it or
            its patience.
    """
    from leebert.exits.checks import check_classes, check_criterion, choosable
    from leebert.metrics import measures

    row = choosable(criterion)
    m, n, k = recorded.logits.shape
    check_classes(criterion, k)
    check_criterion(criterion, patience, m)
    patience = row.counted(patience, m)
    aims = [recorded.depth / speed_up for speed_up in speed_ups]
    requested: np.ndarray | None = None
    if row.whole:
        thresholds, exits = _whole_points(recorded, row, patience)
    else:
        thresholds, exits, requested = _points(recorded, row, patience, aims)
    scored: dict[str, list[float]] = {}
    first = None
    if metric is not None and recorded.labels is not None:
        predicted = recorded.logits.argmax(axis=-1)  # (M, N)
        rows = [measures(metric, recorded.labels, predicted[index, np.arange(n)]) for index in exits]
        scored = {name: [row[name] for row in rows] for name in rows[0]}
        first = measures(metric, recorded.labels, predicted[0])["score"]
    counts = np.stack([np.bincount(index, minlength=m) for index in exits])
    return Tradeoff(
        criterion, counts @ np.asarray(recorded.layers) / n, {name: np.array(v) for name, v in scored.items()},
        np.array(thresholds), counts, recorded.layers, recorded.depth, patience, first, requested,
    )  # fmt: skip


def tradeoffs(
    recorded: RecordedLogits,
    *,
    metric: str | None = None,
    speed_ups: Iterable[float] = (),
    criteria: Iterable[str] | None = None,
) -> dict[str, Tradeoff]:
    """Compute the curve of every usable exit criterion at its default patience.

    Args:
        recorded: Logits (M, N, K), with or without labels.
        metric: Name of the task's metric; None: no scores.
        speed_ups: Layer speed-ups to which each curve also includes the nearest possible points.
        criteria: The names of the criteria; None: all that are installed.

    Returns:
        The curves by the criterion's name. Criteria that differ only in the threshold's unit have one curve.
    """
    targets = tuple(speed_ups)
    return {
        row.name: tradeoff(recorded, row.name, metric=metric, speed_ups=targets)
        for row in usable(len(recorded.logits), criteria)
    }


@renamed_arguments(held_out="recorded", strategy="criterion")
def replay_point(
    recorded: RecordedLogits, metric: str, criterion: str, threshold: float | None, patience: int | None = None
) -> Point:
    """Replay one exit criterion at one threshold; the result equals that of early-exit inference.

    Args:
        recorded: Logits (M, N, K) with labels.
        metric: Name of the task's metric.
        criterion: Name of the exit criterion.
        threshold: Its threshold; None: the default.
        patience: Its second parameter; None: the default.

    Returns:
        Mean exit layer, layer speed-up, measures and exits.

    Raises:
        ConfigError: The criterion or its parameters do not fit the model.
    """
    from leebert.exits.replay import make_criterion, replay
    from leebert.metrics import measures

    assert recorded.labels is not None
    m, _, k = recorded.logits.shape
    exit_index = replay(make_criterion(criterion, threshold, patience, num_exits=m, num_classes=k), recorded.logits)
    predicted = recorded.logits[exit_index, np.arange(len(exit_index))].argmax(axis=-1)
    layers = recorded.mean_layers(exit_index)
    counts = tuple(int(c) for c in np.bincount(exit_index, minlength=m))
    counted = CRITERIA[criterion].counted(patience, m)
    scored = measures(metric, recorded.labels, predicted)
    return Point(criterion, threshold, counted, layers, recorded.depth / layers, scored, counts)


def mean_curve(curves: Sequence[Tradeoff]) -> tuple[np.ndarray, np.ndarray]:
    """Average the curves of several runs.

    The grid is :func:`common_layers`; a single run keeps its own points.

    Returns:
        Layers, rising, and the mean score at each.
    """
    if len(curves) == 1:
        return curves[0].drawn()
    grid = common_layers(curves)
    return grid, np.mean([np.interp(grid, *curve.drawn()) for curve in curves], axis=0)


def common_layers(curves: Sequence[Tradeoff]) -> np.ndarray:
    """Return a grid of mean exit layers, rising, that every curve covers.

    It has :data:`STEPS_PER_LAYER` steps per layer and starts at the slowest of the curves' fastest points.
    """
    low = max(float(curve.layers[0]) for curve in curves)
    high = max(float(curve.layers[-1]) for curve in curves)
    between = np.arange(math.ceil(low * STEPS_PER_LAYER), math.ceil(high * STEPS_PER_LAYER)) / STEPS_PER_LAYER
    return np.unique([low, *between, high])


def layers_within(curves: Sequence[Tradeoff], loss: float = ALLOWED_LOSS) -> float:
    """Find the smallest mean exit layer on the :func:`mean_curve` with a small drop in score.

    Args:
        curves: Curves of the runs of one configuration.
        loss: Largest drop from the score at full depth, as a fraction.

    Returns:
        The mean exit layer.
    """
    layers, scores = mean_curve(curves)
    return float(layers[_fewest(scores, loss)])


def _fewest(scores: np.ndarray, loss: float) -> int:
    """Index of the first of `scores` over rising layers that is at most `loss` below the last."""
    sufficient = scores >= scores[-1] - loss - _ROUNDING
    return int(np.append(sufficient[:-1], True).argmax())


def _whole_points(
    recorded: RecordedLogits, row: Criterion, patience: int | None
) -> tuple[list[float], list[np.ndarray]]:
    """All thresholds of a criterion with whole-number thresholds, and the exits (N,), from 0, at each; fastest first."""
    from leebert.exits.replay import make_criterion, replay

    m, _, k = recorded.logits.shape
    low, high = row.bounds(m, k)
    thresholds = [float(t) for t in range(int(low), int(high) + 1)]
    if row.rising:
        thresholds.reverse()
    criteria = (make_criterion(row.name, t, patience, num_exits=m, num_classes=k) for t in thresholds)
    return thresholds, [replay(criterion, recorded.logits) for criterion in criteria]


def _points(
    recorded: RecordedLogits, row: Criterion, patience: int | None, aims: Sequence[float]
) -> tuple[list[float], list[np.ndarray], np.ndarray]:
    """Thresholds spread over layers, the exits (N,), from 0, at each, and a mask (T,); fastest first.

    The mask marks points that exist only because of `aims`, mean exit layers to which near points are added.
    """
    m, n, k = recorded.logits.shape
    base = CRITERIA[row.unit_of] if row.unit_of else row  # one order of samples, whatever the unit
    unit = base.bounds(m, k)[1] / row.bounds(m, k)[1]
    critical = _critical(recorded, base, patience)
    values, positions = np.unique(critical[np.isfinite(critical)], return_inverse=True)
    # Cut i lies below value i: samples with smaller values have exited. The first cut is the full model, the last the fastest.
    layers = np.asarray(recorded.layers)
    saved = np.repeat(np.diff(layers), np.isfinite(critical).sum(axis=1))
    by_cut = layers[-1] - np.append(0, np.bincount(positions, saved, len(values)).cumsum()) / n
    cuts = np.arange(len(values) + 1)
    apart = np.diff(values) > np.maximum(_APART * np.maximum(np.abs(values[1:]), np.abs(values[:-1])), _TINY)
    cuts = cuts[np.concatenate([[True], apart, [True]])] if len(values) else cuts
    regular = cuts[_spread(by_cut[cuts], layers[0])]
    chosen = np.union1d(regular, cuts[_beside(by_cut[cuts], aims)])[::-1]
    ends = _ends(row, m, k)
    sign = 1 if row.rising else -1
    limits = np.append(values, np.inf)
    thresholds, exits = [], []
    for cut in chosen:
        if cut == 0:
            threshold = ends[0]
        elif cut == len(values):
            threshold = ends[1]
        else:
            threshold = sign * _between(float(values[cut - 1]) / unit, float(values[cut]) / unit)
        thresholds.append(threshold)
        exits.append((critical >= limits[cut]).sum(axis=0))
    return thresholds, exits, ~np.isin(chosen, regular)


def _critical(recorded: RecordedLogits, row: Criterion, patience: int | None) -> np.ndarray:
    """Critical values (M − 1, N): a sample has exited by an exit if its value lies below the threshold.

    For falling criteria both are negated. The critical value is the minimum so far of the maximum of `patience` successive
    values, and infinite at exits that are too early for the criterion.
    """
    from leebert.exits.replay import make_criterion, measured

    m, n, k = recorded.logits.shape
    if m == 1:
        return np.empty((0, n))
    exit_criterion: Any = make_criterion(row.name, row.bounds(m, k)[1], patience, num_exits=m, num_classes=k)
    values = measured(exit_criterion, recorded.logits[:-1]).astype(float) * (1 if row.rising else -1)
    values = np.where(np.isnan(values), np.inf, values)
    window = patience or 1
    worst = np.full_like(values, np.inf)
    for exit_ in range(window - 1, m - 1):
        worst[exit_] = values[exit_ - window + 1 : exit_ + 1].max(axis=0)
    first = row.first(window) - 1
    worst[:first] = np.inf
    return np.minimum.accumulate(worst, axis=0)


def _spread(layers: np.ndarray, first: int) -> np.ndarray:
    """Indices, rising, of falling `layers`: nearest to each step of a grid, both ends, and both sides of gaps."""
    rising = layers[::-1]
    steps = math.ceil(math.log(rising[-1] / first) / STEP) if rising[-1] > first else 0
    grid = rising[-1] * np.exp(-STEP * np.arange(steps + 1))
    above = np.searchsorted(rising, grid).clip(1, len(rising) - 1) if len(rising) > 1 else np.zeros(0, int)
    below = above - 1
    near = np.where(rising[above] - grid[: len(above)] < grid[: len(above)] - rising[below], above, below)
    gaps = np.flatnonzero(np.diff(np.log(rising)) > STEP)
    chosen = np.concatenate([[0, len(rising) - 1], near, gaps, gaps + 1])
    return len(rising) - 1 - np.unique(chosen.astype(int))[::-1]


def _beside(layers: np.ndarray, aims: Sequence[float]) -> np.ndarray:
    """Indices of falling `layers` on both sides of each aim."""
    above = len(layers) - np.searchsorted(layers[::-1], np.asarray(aims, float))
    return np.concatenate([above - 1, above]).clip(0, len(layers) - 1)


def _ends(row: Criterion, exits: int, classes: int) -> tuple[float, float]:
    """The threshold at which no sample exits early, and the one at which all exit at the first possible exit.

    They hold for all samples, not only the recorded ones, since they lie slightly beyond the range of float32 rounding.
    """
    low, high = row.bounds(exits, classes)
    beyond = 1 + THRESHOLD_SLACK / 2
    return (low, high * beyond) if row.rising else (high * beyond, low / beyond)


def _between(low: float, high: float) -> float:
    """The number with the fewest digits between two numbers, at a distance from both."""
    margin = (high - low) / 4
    for digits in range(1, 17):
        number = float(f"{(low + high) / 2:.{digits}g}")
        if low + margin < number < high - margin:
            return number
    return (low + high) / 2
