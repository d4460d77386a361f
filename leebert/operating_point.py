"""A model's operating point: the exit criterion and threshold that meet an aim on recorded validation samples.

The aim is a loss against the full model, a layer speed-up, or the one with the other where it saves nothing. What each
criterion reaches is read from its curve (`leebert.tradeoff`); of several criteria the best at the aim is taken.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leebert.errors import ConfigError
from leebert.evaluate import HeldOut
from leebert.exits import CRITERIA, named
from leebert.thresholds import Chosen
from leebert.tradeoff import ALLOWED_LOSS, SPEED_UP, Point, Tradeoff, tradeoff, tradeoffs

#: How much faster than the full model a curve's point within a loss must be to count as an early exit.
_SAVES = 1 + 1e-6


def points(loss: float) -> str:
    """A loss of score, a fraction, in words: `0.5 points`, `1 point`."""
    return f"{100 * loss:.3g} point{'' if math.isclose(100 * loss, 1) else 's'}"


@dataclasses.dataclass(frozen=True)
class Aim:
    """What a threshold is chosen for.

    Attributes:
        max_loss: Largest loss of score against the full model, as a fraction; None: not stated.
        speed_up: Layer speed-up, depth / mean layers; None: not stated. With `max_loss`, what is aimed at where no
            threshold within that loss saves a layer.
    """

    max_loss: float | None = ALLOWED_LOSS
    speed_up: float | None = SPEED_UP

    @classmethod
    def of(cls, max_loss: float | None = None, speed_up: float | None = None) -> Aim:
        """From `--max-loss`, in points, and `--speed-up`; the default aim where neither is given.

        Raises:
            ConfigError: A loss that is no number of points of at least 0, a speed-up that is none of at least 1.
        """
        if max_loss is None and speed_up is None:
            return cls()
        if max_loss is not None and not 0 <= max_loss <= 100:
            raise ConfigError(f"--max-loss {max_loss:g}: points of the score, between 0 and 100, such as 0.5")
        if speed_up is not None and not 1 <= speed_up < math.inf:
            raise ConfigError(f"--speed-up {speed_up:g}: depth / mean layers, a number of at least 1, such as 2")
        return cls(None if max_loss is None else max_loss / 100, speed_up)

    def __str__(self) -> str:
        stated = []
        if self.max_loss is not None:
            stated.append(f"at most {points(self.max_loss)} below the full model")
        if self.speed_up is not None:
            stated.append(f"a layer speed-up of {self.speed_up:g}")
        return ", else ".join(stated)


def choose_point(curves: Sequence[Tradeoff], aim: Aim) -> Chosen:
    """The criterion and threshold that are best for an aim.

    Within a loss the fastest is best, at a speed-up the most accurate of those that come within 5 % of it, or else the
    nearest. Equals are settled by the score, then by the order of the criteria, patience last.

    Args:
        curves: One curve per criterion, of the same samples.
        aim: What is aimed at. A loss needs labelled curves.

    Raises:
        ConfigError: No curve, or a loss for samples without labels.
    """
    if not curves:
        raise ConfigError("a model with one exit has no exit criterion to choose")
    ordered = sorted(curves, key=lambda curve: CRITERIA[curve.criterion].whole)  # stable: patience goes last
    if aim.max_loss is not None:
        within = [_chosen(curve, curve.within(aim.max_loss), max_loss=aim.max_loss) for curve in ordered]
        best = max(within, key=lambda chosen: (round(chosen.reached, 9), -round(chosen.loss or 0.0, 9)))
        # A reduced network has a layer speed-up before any sample exits early.
        if best.reached > _SAVES * ordered[0].slowest or aim.speed_up is None:
            return best
    assert aim.speed_up is not None
    asked = aim.speed_up
    nearest = [_chosen(curve, curve.nearest(asked), asked=asked) for curve in ordered]
    near = [chosen for chosen in nearest if chosen.near]
    if not near:
        return min(nearest, key=lambda chosen: abs(math.log(chosen.reached / asked)))
    return min(near, key=lambda chosen: (round(chosen.loss or 0.0, 9), abs(math.log(chosen.reached / asked))))


def choose_exits(
    recorded: HeldOut, metric: str, aim: Aim, criterion: str | None = None, patience: int | None = None
) -> Chosen:
    """The operating point of recorded validation samples: of this exit criterion, or of the one that is best for the aim."""
    asked = () if aim.speed_up is None else (aim.speed_up,)
    if criterion is None:
        return choose_point(list(tradeoffs(recorded, metric=metric, speed_ups=asked).values()), aim)
    return choose_point([tradeoff(recorded, criterion, patience, metric=metric, speed_ups=asked)], aim)


def _chosen(curve: Tradeoff, point: Point, *, asked: float | None = None, max_loss: float | None = None) -> Chosen:
    loss = float(curve.scores[-1]) - point.measures["score"] if curve.labelled else None
    assert point.threshold is not None
    return Chosen(
        point.criterion, point.threshold, point.speed_up if asked is None else asked, point.speed_up,
        point.patience, loss=loss, max_loss=max_loss,
    )  # fmt: skip


def saved_tradeoffs(
    curves: Mapping[str, Sequence[Sequence[float]]], exit_layers: Sequence[int], depth: int
) -> list[Tradeoff]:
    """The labelled curves of a saved model (`leebert.thresholds.read_curves`, `validated`), as they were before they were saved.

    Curves without scores are left out, as models trained by earlier versions have them.
    """
    found = []
    for name, points in curves.items():
        criterion, _, patience = name.partition(", patience ")
        if criterion not in CRITERIA or any(len(point) < 3 for point in points):
            continue
        columns: Any = np.array(points, float)
        columns = columns[np.argsort(-columns[:, 1], kind="stable")]  # the fastest first
        found.append(
            Tradeoff(
                criterion, depth / columns[:, 1], {"score": columns[:, 2]}, columns[:, 0],
                np.empty((len(columns), 0), int), tuple(exit_layers), depth, int(patience) if patience else None,
            )
        )  # fmt: skip
    return found


def within_loss(curves: Sequence[Tradeoff], criterion: str, patience: int | None, max_loss: float) -> Chosen:
    """The fastest threshold of one criterion that loses at most `max_loss` (a fraction) on a saved model's curves.

    Raises:
        ConfigError: The model has no labelled curve of the criterion.
    """
    for curve in curves:
        if (curve.criterion, curve.patience) == (criterion, patience):
            return choose_point([curve], Aim(max_loss, None))
    there = ", ".join(curve.name for curve in curves)
    raise ConfigError(
        f"this model has no scores by threshold of the exit criterion {named(criterion, patience)!r}"
        + (f" (but of {there})" if there else "")
        + ", so no loss can be allowed: train it again with a validation fold, or ask for a speed-up"
    )


def in_words(chosen: Chosen) -> str:
    """An operating point as a line: criterion, threshold, layer speed-up, and the loss where it is known."""
    loss = "" if chosen.loss is None else f", {-100 * chosen.loss + 0.0:+.2f} points"
    return f"exit criterion {chosen.name}, threshold {chosen.threshold:.6g}: {chosen.reached:.2f}× layer speed-up{loss}"
