"""Which threshold gives a speed-up: chosen by replay on recorded logits, of which the development split is never one.

What each threshold reaches is read from the curve of `leebert.tradeoff`, which has the nearest there is to any speed-up.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leebert.config import ExitConfig
from leebert.errors import ConfigError
from leebert.evaluate import HeldOut
from leebert.exits import CRITERIA, named, with_threshold
from leebert.exits.checks import choosable
from leebert.exits.replay import make_criterion, replay
from leebert.files import parse_json
from leebert.tradeoff import tradeoff

#: The file of a model's folder that says which threshold gives which speed-up.
FILE = "exits.json"

#: How far a layer ratio on other rows may be off what was aimed at before it is called missed.
MISSED = 0.1

#: Standard normal quantile of a two-sided interval at 95 %.
_Z95 = 1.96


@dataclasses.dataclass(frozen=True)
class Chosen:
    """An exit criterion with the threshold that comes nearest to the speed-up `asked`, and the one `reached` on the recorded rows.

    loss: of score against the full model there, a fraction; None where the samples have no labels. max_loss: the loss that
    was allowed, where that was the aim; `asked` is then what was reached.
    """

    criterion: str
    threshold: float
    asked: float
    reached: float
    patience: int | None = None
    loss: float | None = None
    max_loss: float | None = None

    @property
    def exits(self) -> ExitConfig:
        """The criterion with its parameters."""
        return ExitConfig(criterion=self.criterion, threshold=self.threshold, patience=self.patience)

    @property
    def name(self) -> str:
        """The criterion in words, with its second parameter."""
        return named(self.criterion, self.patience)

    @property
    def near(self) -> bool:
        """Whether it is within 5 % of what was asked: patience has only M−1 thresholds, and others begin late."""
        return abs(self.reached / self.asked - 1) <= 0.05

    @property
    def aim(self) -> float:
        """What other rows are held to: the speed-up asked for, for criteria that compare exits the nearest that they attain."""
        return self.reached if CRITERIA[self.criterion].several else self.asked

    def missed(self, speed_up: float) -> bool:
        """Whether other rows' speed-up is off by more than 10 %; never where a loss was the aim, and the speed came of it."""
        return self.max_loss is None and abs(speed_up / self.aim - 1) > MISSED

    def overspent(self, loss: float) -> bool:
        """Whether other samples lose more against the full model than was allowed, both as fractions."""
        return self.max_loss is not None and loss > self.max_loss

    @property
    def shortfall(self) -> str:
        """What the nearest threshold means where it is not near, in words."""
        row = CRITERIA[self.criterion]
        why = "its thresholds are whole numbers" if row.whole else "samples exit together"
        if row.several and not row.whole:
            why += f", none before exit {row.first(self.patience or 1)}"
        return (
            f"{self.name} does not attain a speed-up of {self.asked:g}, since {why}: the nearest is {self.reached:.2f}, "
            f"at {self.threshold:.6g}"
        )


def layer_ratio(recorded: HeldOut, criterion: str, threshold: float | None, patience: int | None = None) -> float:
    """Depth / mean layers executed under an exit criterion, on recorded logits."""
    return recorded.depth / float(_layers(recorded, criterion, threshold, patience).mean())


def ratio_interval(
    recorded: HeldOut, criterion: str, threshold: float | None, patience: int | None = None
) -> tuple[float, float]:
    """The layer ratio to expect on other rows of the same kind, (low, high) at 95 %: by the standard error of the mean
    layers, which is also that of a threshold chosen on these rows."""
    layers, first, last = _layers(recorded, criterion, threshold, patience), recorded.layers[0], recorded.layers[-1]
    mean, off = float(layers.mean()), _Z95 * float(layers.std()) / math.sqrt(len(layers))
    return recorded.depth / min(last, mean + off), recorded.depth / max(first, mean - off)


def rows_needed(speed_up: float, layers: Sequence[int], depth: int) -> int:
    """How many rows put the mean layers on others within 10 % of depth / `speed_up` at 95 %, however they leave.

    Layers lie between the first exit's and the last one's, so that with the mean depth / speed-up their variance is at most
    (mean − first)(last − mean).
    """
    mean = depth / speed_up
    return max(1, math.ceil((_Z95 / (MISSED * mean)) ** 2 * (mean - layers[0]) * (layers[-1] - mean)))


def _layers(recorded: HeldOut, criterion: str, threshold: float | None, patience: int | None) -> np.ndarray:
    """Layers executed for each row, (N,)."""
    m, _, k = recorded.logits.shape
    made = make_criterion(criterion, threshold, patience, num_exits=m, num_classes=k)
    return np.asarray(recorded.layers)[replay(made, recorded.logits)]


def attainable(layers: Sequence[int], depth: int) -> tuple[float, float]:
    """The least and the greatest speed-up of a model whose exits answer after so many layers, of `depth`."""
    return depth / layers[-1], depth / layers[0]


def check_speed_up(asked: float, layers: Sequence[int], depth: int) -> float:
    """`asked` as it is, if rows could leave after so many layers; ConfigError otherwise."""
    least, greatest = attainable(layers, depth)
    if not least <= asked <= greatest:
        most = "all" if layers[-1] == depth else f"{layers[-1]} of {depth}"
        raise ConfigError(
            f"speed-up {asked:g}: lies between {least:g} ({most} layers) and {greatest:g} ({layers[0]} of {depth} layers)"
        )
    return asked


def choose(recorded: HeldOut, criterion: str, asked: float, patience: int | None = None) -> Chosen:
    """The threshold whose speed-up, depth / mean layers, on the recorded rows is nearest to `asked`.

    `patience` is the criterion's second parameter; None: its default. Raises ConfigError for a criterion that M exits have no use for.
    """
    check_speed_up(asked, recorded.layers, recorded.depth)
    point = tradeoff(recorded, criterion, patience, speed_ups=[asked]).nearest(asked)
    assert point.threshold is not None
    return Chosen(criterion, point.threshold, asked, point.speed_up, point.patience)


def curves(
    recorded: HeldOut, patience: int | None = None, *, metric: str | None = None
) -> dict[str, list[list[float]]]:
    """[threshold, speed-up] for each criterion, rising in the threshold: the points of its :func:`leebert.tradeoff.tradeoff`.

    With a metric each point has its score, too, if the samples have labels. Criteria with a second parameter have a curve at
    its default, and one at `patience` where that is another.
    """
    m = len(recorded.logits)
    found: dict[str, list[list[float]]] = {}
    for row in with_threshold().values():
        if row.several and m < 2:
            continue
        for counted in dict.fromkeys((row.counted(None, m), row.counted(patience, m))):
            curve = tradeoff(recorded, row.name, counted, metric=metric)
            columns = [curve.thresholds, curve.depth / curve.layers, *([curve.scores] if curve.labelled else [])]
            points = np.stack(columns, axis=1).tolist()
            found[curve.name] = points[::-1] if row.rising else points
    return found


def curves_as_json(
    curves: dict[str, list[list[float]]],
    num_exits: int,
    chosen_on: str,
    own: Chosen | None = None,
    validated: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> str:
    """What :data:`FILE` is to hold: the curves, in words which samples they are of, and the model's own point on them.

    validated: the curves of labelled samples, where `curves` are of unlabelled ones: what a threshold costs is read there.
    """
    more: dict[str, Any] = {} if own is None else {"chosen": dataclasses.asdict(own)}
    if validated:
        more["validated"] = validated
    return json.dumps({"chosen_on": chosen_on, "num_exits": num_exits, **more, "curves": curves})


def look_up(curves: dict[str, list[list[float]]], criterion: str, asked: float, patience: int | None = None) -> Chosen:
    """As :func:`choose`, from a model's curves: to within their step, 2 %. A criterion's second parameter must be given here."""
    row = choosable(criterion)
    name = named(row.name, patience)
    if name not in curves:
        others = "; ".join(other for other in curves if other.startswith(f"{row.name},"))
        there = f" (but of {others})" if others else ""
        raise ConfigError(f"this model has no curve of the exit criterion {name!r}{there}: give a threshold")
    points = curves[name]
    if not row.whole and asked in (min(p[1] for p in points), max(p[1] for p in points)):
        # Other rows may be less sure, or surer, than any recorded one: the end of the range holds for them, too.
        points = [points[0], points[-1]]
    threshold, reached, *_ = min(points, key=lambda point: abs(math.log(point[1] / asked)))
    return Chosen(row.name, threshold, asked, reached, patience)


def read_curves(folder: Path, *, validated: bool = False) -> dict[str, list[list[float]]]:
    """The curves of a saved model, with scores where the file has them; empty where it has none.

    With `validated`, those of the labelled samples that the thresholds were validated on, which calibration keeps.
    """
    try:
        found: Any = parse_json((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / FILE} can't be read: {error}") from None
    try:
        curves = {
            str(name): [
                [float(threshold), float(speed_up), *map(float, score)] for threshold, speed_up, *score in points
            ]
            for name, points in found["validated" if validated and "validated" in found else "curves"].items()
            if points
        }
        if not all(_sound(name, points) for name, points in curves.items()):
            raise ValueError
        return curves
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ConfigError(
            f"{folder / FILE}: no table of thresholds and speed-ups; remove the file to serve the model without speed_up"
        ) from None


def _sound(name: str, points: Sequence[Sequence[float]]) -> bool:
    """Whether a saved curve has a known name, finite numbers, speed-ups of at least 1, and a score everywhere or nowhere."""
    criterion, _, patience = name.partition(", patience ")
    return (
        criterion in CRITERIA
        and CRITERIA[criterion].has_threshold
        and (not patience or patience.isdecimal())
        and len({len(point) for point in points}) == 1
        and len(points[0]) <= 3
        and all(math.isfinite(x) for point in points for x in point)
        and all(point[1] >= 1 - 1e-9 for point in points)
    )
