"""A model's operating point: the exit criterion and threshold that meet an aim on recorded validation samples.

The aim is a largest drop in score against the full model, a layer speed-up, or a largest drop with a layer speed-up as
fallback.
The curve of each criterion (`leebert.tradeoff`) gives its layers and scores; of several criteria the best for the aim
is chosen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from leebert.errors import ConfigError
from leebert.exits import CRITERIA, named
from leebert.milliseconds import ExitMilliseconds, within_time
from leebert.thresholds import Chosen
from leebert.tradeoff import ALLOWED_LOSS, SPEED_UP, Point, Tradeoff, tradeoff, tradeoffs

if TYPE_CHECKING:
    from leebert.evaluate import RecordedLogits

#: The layer speed-up above which a point counts as an early exit, relative to the full model.
_SAVES = 1 + 1e-6


def points(loss: float) -> str:
    """Format a drop in score, a fraction: `0.5 points`, `1 point`."""
    return f"{100 * loss:.3g} point{'' if math.isclose(100 * loss, 1) else 's'}"


def check_max_loss(points: float, name: str = "max_loss") -> float:
    """Refuse a largest drop in score that is none.

    Args:
        points: The drop, in points.
        name: The option or parameter, for messages.

    Returns:
        The drop as a fraction.

    Raises:
        ConfigError: It is not between 0 and 100 points.
    """
    if not 0 <= points <= 100:
        raise ConfigError(f"{name} {points:g}: should be points of score between 0 and 100, such as 0.5")
    return points / 100


@dataclasses.dataclass(frozen=True)
class Aim:
    """The aim of the choice of a threshold.

    Attributes:
        max_loss: Largest drop in score against the full model, as a fraction; None: not stated.
        speed_up: Layer speed-up, depth / mean exit layer; None: not stated. With `max_loss`, the fallback if no sample
            exits early with any threshold within that drop.
        milliseconds: Largest mean wall-clock time per sample, which calibration measures; None: not stated.
    """

    max_loss: float | None = ALLOWED_LOSS
    speed_up: float | None = SPEED_UP
    milliseconds: float | None = None

    @classmethod
    def of(cls, max_loss: float | None = None, speed_up: float | None = None, milliseconds: float | None = None) -> Aim:
        """Make an aim from the options of commands.

        Args:
            max_loss: Largest drop in score, in points (`--max-loss`); None: not given.
            speed_up: Target layer speed-up (`--speed-up`); None: not given.
            milliseconds: Largest mean wall-clock time per sample (`--latency`); None: not given.

        Returns:
            The aim; the default one if all are None.

        Raises:
            ConfigError: The loss is not between 0 and 100 points, the speed-up is below 1, or a time is given with another aim.
        """
        if milliseconds is not None and (max_loss is not None or speed_up is not None):
            raise ConfigError(f"--latency and {'--speed-up' if max_loss is None else '--max-loss'}: give one of them")
        if max_loss is None and speed_up is None and milliseconds is None:
            return cls()
        fraction = None if max_loss is None else check_max_loss(max_loss, "--max-loss")
        if speed_up is not None and not 1 <= speed_up < math.inf:
            raise ConfigError(f"--speed-up {speed_up:g}: should be a layer speed-up of at least 1, such as 2")
        return cls(fraction, speed_up, milliseconds)

    def __str__(self) -> str:
        stated = []
        if self.max_loss is not None:
            stated.append(f"at most {points(self.max_loss)} below the full model")
        if self.speed_up is not None:
            stated.append(f"a layer speed-up of {self.speed_up:g}")
        if self.milliseconds is not None:
            stated.append(f"at most {self.milliseconds:g} ms per sample")
        return ", else ".join(stated)


def choose_point(curves: Sequence[Tradeoff], aim: Aim) -> Chosen:
    """Choose the best criterion and threshold for an aim.

    For a largest drop in score, the fastest is best. For a speed-up, the best has the highest score of those within 5 % of it, else
    it is the nearest. Ties go to the higher score, then to the order of the criteria, patience last.

    Args:
        curves: One curve per criterion, of the same samples.
        aim: The aim. A loss needs labelled curves.

    Returns:
        The operating point.

    Raises:
        ConfigError: There is no curve, or the aim is a drop in score and the samples have no labels.
    """
    if not curves:
        raise ConfigError("a model with one exit has no exit criterion to choose; train it with several exits")
    ordered = sorted(curves, key=lambda curve: CRITERIA[curve.criterion].whole)  # stable: patience goes last
    if aim.max_loss is not None:
        within = [_chosen(curve, curve.within(aim.max_loss), max_loss=aim.max_loss) for curve in ordered]
        best = max(within, key=lambda chosen: (round(chosen.reached, 9), -round(chosen.loss or 0.0, 9)))
        # A reduced network has a layer speed-up before any sample exits early.
        if best.reached > _SAVES * ordered[0].slowest or aim.speed_up is None:
            return best
    assert aim.speed_up is not None
    target = aim.speed_up
    nearest = [_chosen(curve, curve.nearest(target), target=target) for curve in ordered]
    near = [chosen for chosen in nearest if chosen.near]
    if not near:
        return min(nearest, key=lambda chosen: abs(math.log(chosen.reached / target)))
    return min(near, key=lambda chosen: (round(chosen.loss or 0.0, 9), abs(math.log(chosen.reached / target))))


def choose_in_time(curves: Sequence[Tradeoff], times: ExitMilliseconds, milliseconds: float) -> Chosen:
    """Choose the criterion and threshold with the best score within a mean time per sample; of equal scores, the fastest.

    Args:
        curves: One labelled curve per criterion, of the same samples.
        times: The time up to each exit.
        milliseconds: The largest mean time.

    Returns:
        The operating point.

    Raises:
        ConfigError: No threshold is fast enough.
    """
    within = [
        (round(point.measures["score"], 9), -time, _chosen(curve, point))
        for curve in sorted(curves, key=lambda curve: CRITERIA[curve.criterion].whole)
        for point, time in zip(curve, times.of_curve(curve).tolist(), strict=True)
        if within_time(time, milliseconds)
    ]
    if not within:
        raise times.too_slow(curves, milliseconds)
    return max(within, key=lambda one: one[:2])[2]


def choose_exits(
    recorded: RecordedLogits,
    metric: str,
    aim: Aim,
    criterion: str | None = None,
    patience: int | None = None,
    *,
    published: str | None = None,
    times: ExitMilliseconds | None = None,
) -> Chosen:
    """Choose the operating point on recorded validation samples.

    Args:
        recorded: Logits (M, N, K) with labels.
        metric: Name of the task's metric.
        aim: The aim.
        criterion: The exit criterion; None: the best one for the aim, of the built-in ones and `published`.
        patience: Its second parameter; None: the default.
        published: The criterion of the method's paper. Other installed ones are chosen by name only, so that installing a
            package does not change a model.
        times: The time up to each exit, for an aim in milliseconds.

    Returns:
        The operating point.

    Raises:
        ConfigError: As :func:`choose_point`, :func:`choose_in_time` and :func:`leebert.tradeoff.tradeoff`.
    """
    targets = () if aim.speed_up is None else (aim.speed_up,)
    if criterion is None:
        names = dict.fromkeys((*CRITERIA.built_in, *([published] if published else ())))
        curves = list(tradeoffs(recorded, metric=metric, speed_ups=targets, criteria=names).values())
    else:
        curves = [tradeoff(recorded, criterion, patience, metric=metric, speed_ups=targets)]
    if aim.milliseconds is not None:
        assert times is not None
        return choose_in_time(curves, times, aim.milliseconds)
    return choose_point(curves, aim)


def _chosen(curve: Tradeoff, point: Point, *, target: float | None = None, max_loss: float | None = None) -> Chosen:
    loss = float(curve.scores[-1]) - point.measures["score"] if curve.labelled else None
    assert point.threshold is not None
    return Chosen(
        point.criterion, point.threshold, point.speed_up if target is None else target, point.speed_up,
        point.patience, loss=loss, max_loss=max_loss,
    )  # fmt: skip


def saved_tradeoffs(
    curves: Mapping[str, Sequence[Sequence[float]]], exit_layers: Sequence[int], depth: int
) -> list[Tradeoff]:
    """Rebuild the labelled curves of a saved model.

    Curves without scores, which earlier versions saved, are omitted.

    Args:
        curves: Points by criterion, from :func:`leebert.thresholds.read_curves` with `validated`.
        exit_layers: (M,) layers below each exit.
        depth: Layers of the unreduced network.

    Returns:
        One curve per criterion, without counts.
    """
    saved = []
    for name, points in curves.items():
        criterion, _, patience = name.partition(", patience ")
        if CRITERIA.find(criterion) is None or any(len(point) < 3 for point in points):
            continue
        columns: Any = np.array(points, float)
        columns = columns[np.argsort(-columns[:, 1], kind="stable")]  # the fastest first
        saved.append(
            Tradeoff(
                criterion, depth / columns[:, 1], {"score": columns[:, 2]}, columns[:, 0],
                np.empty((len(columns), 0), int), tuple(exit_layers), depth, int(patience) if patience else None,
            )
        )  # fmt: skip
    return saved


def within_loss(curves: Sequence[Tradeoff], criterion: str, patience: int | None, max_loss: float) -> Chosen:
    """Choose the fastest threshold of a criterion whose score drops by at most `max_loss` on a saved model's curves.

    Args:
        curves: The model's labelled curves (:func:`saved_tradeoffs`).
        criterion: The exit criterion.
        patience: Its second parameter; None for criteria without one.
        max_loss: Largest drop in score against the full model, as a fraction.

    Raises:
        ConfigError: The model has no labelled curve of the criterion.
    """
    for curve in curves:
        if (curve.criterion, curve.patience) == (criterion, patience):
            return choose_point([curve], Aim(max_loss, None))
    scored = ", ".join(curve.name for curve in curves)
    raise ConfigError(
        f"max_loss: exits.json has no scores of the exit criterion {named(criterion, patience)!r}"
        + (f" (it has scores of {scored})" if scored else "")
        + "; train the model with a validation fold, or set a speed-up instead"
    )


def in_words(chosen: Chosen) -> str:
    """Format an operating point: criterion, threshold, layer speed-up and, if known, the change of score."""
    loss = "" if chosen.loss is None else f", {-100 * chosen.loss + 0.0:+.2f} points"
    return f"exit criterion {chosen.name}, threshold {chosen.threshold:.6g}: {chosen.reached:.2f}× layer speed-up{loss}"
