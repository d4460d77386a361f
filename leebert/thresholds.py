"""Choose the threshold with a layer speed-up by replay on recorded logits, and store the curves beside a model.

Thresholds come from validation samples or unlabelled texts, never from the development split. The curves of
`leebert.tradeoff` give the layer speed-up and score of each threshold.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leebert.errors import ConfigError
from leebert.exits import CRITERIA, named, with_threshold
from leebert.exits.checks import choosable
from leebert.exits.replay import make_criterion, replay
from leebert.files import parse_json
from leebert.tradeoff import tradeoff

if TYPE_CHECKING:  # exported models choose thresholds without torch and pydantic
    from leebert.config import ExitConfig
    from leebert.evaluate import RecordedLogits

#: The file of a model's folder with the layer speed-up of each threshold.
FILE = "exits.json"

#: The largest relative difference between a layer speed-up on other samples and its target; beyond it the target is missed.
MISSED = 0.1

#: Standard normal quantile of a two-sided interval at 95 %.
_Z95 = 1.96


@dataclasses.dataclass(frozen=True)
class Chosen:
    """An exit criterion with its threshold for an aim.

    Attributes:
        criterion: Name of the exit criterion.
        threshold: The threshold.
        asked: The target layer speed-up; with `max_loss`, equal to `reached`.
        reached: The layer speed-up on the recorded samples.
        patience: Second parameter; None for criteria without one.
        loss: Score of the full model minus the score here, as a fraction; None for unlabelled samples.
        max_loss: The largest loss, if that is the aim.
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
        from leebert.config import ExitConfig

        return ExitConfig(criterion=self.criterion, threshold=self.threshold, patience=self.patience)

    @property
    def name(self) -> str:
        """The criterion in words, with its second parameter."""
        return named(self.criterion, self.patience)

    @property
    def near(self) -> bool:
        """Whether `reached` is within 5 % of `asked`. Patience has only M − 1 thresholds, and some criteria start late."""
        return abs(self.reached / self.asked - 1) <= 0.05

    @property
    def aim(self) -> float:
        """The layer speed-up to expect on other samples: `asked`, or `reached` for criteria that compare exits."""
        return self.reached if CRITERIA[self.criterion].several else self.asked

    def missed(self, speed_up: float) -> bool:
        """Whether the layer speed-up on other samples is off by more than 10 %; False if the aim is a drop in score."""
        return self.max_loss is None and abs(speed_up / self.aim - 1) > MISSED

    def overspent(self, loss: float) -> bool:
        """Whether the drop in score on other samples, a fraction, exceeds the largest drop of the aim."""
        return self.max_loss is not None and loss > self.max_loss

    @property
    def shortfall(self) -> str:
        """Explain why the nearest threshold misses the target by more than 5 %."""
        row = CRITERIA[self.criterion]
        reason = "its thresholds are whole numbers" if row.whole else "samples exit together"
        if row.several and not row.whole:
            reason += f", none before exit {row.first(self.patience or 1)}"
        return (
            f"exit criterion {self.name} does not reach a layer speed-up of {self.asked:g}, since {reason}: the nearest is "
            f"{self.reached:.2f}, threshold {self.threshold:.6g}"
        )


def layer_speed_up(
    recorded: RecordedLogits, criterion: str, threshold: float | None, patience: int | None = None
) -> float:
    """Compute depth / mean exit layer under an exit criterion.

    Args:
        recorded: Logits of N samples.
        criterion: Name of the exit criterion.
        threshold: Its threshold; None for a criterion without one.
        patience: Its second parameter; None: the default.

    Returns:
        The layer speed-up on these samples.
    """
    return recorded.depth / float(_layers(recorded, criterion, threshold, patience).mean())


def speed_up_interval(
    recorded: RecordedLogits, criterion: str, threshold: float | None, patience: int | None = None
) -> tuple[float, float]:
    """Estimate the layer speed-up on similar samples.

    The interval uses the standard error of the mean exit layer. It also holds if the threshold was chosen on these samples.

    Args:
        recorded: Logits of N samples.
        criterion: Name of the exit criterion.
        threshold: Its threshold; None for a criterion without one.
        patience: Its second parameter; None: the default.

    Returns:
        Lower and upper end of the 95 % interval.
    """
    layers, first, last = _layers(recorded, criterion, threshold, patience), recorded.layers[0], recorded.layers[-1]
    mean, off = float(layers.mean()), _Z95 * float(layers.std()) / math.sqrt(len(layers))
    return recorded.depth / min(last, mean + off), recorded.depth / max(first, mean - off)


def rows_needed(speed_up: float, layers: Sequence[int], depth: int) -> int:
    """Count the samples that estimate the mean exit layer within 10 % at 95 % confidence, for any distribution of exits.

    Exit layers lie between the first and the last exit's, so with mean depth / speed-up their variance is at most
    (mean − first)(last − mean).

    Args:
        speed_up: The layer speed-up, depth / mean exit layer.
        layers: (M,) layers below each exit.
        depth: Layers of the unreduced network.

    Returns:
        Number of samples, at least 1.
    """
    mean = depth / speed_up
    return max(1, math.ceil((_Z95 / (MISSED * mean)) ** 2 * (mean - layers[0]) * (layers[-1] - mean)))


def _layers(recorded: RecordedLogits, criterion: str, threshold: float | None, patience: int | None) -> np.ndarray:
    """Exit layer of each sample, (N,)."""
    m, _, k = recorded.logits.shape
    exit_criterion = make_criterion(criterion, threshold, patience, num_exits=m, num_classes=k)
    layers: np.ndarray = np.asarray(recorded.layers)[replay(exit_criterion, recorded.logits)]
    return layers


def attainable(layers: Sequence[int], depth: int) -> tuple[float, float]:
    """Compute the smallest and largest layer speed-up of a model with exits after these layers of `depth`."""
    return depth / layers[-1], depth / layers[0]


def check_speed_up(target: float, layers: Sequence[int], depth: int) -> float:
    """Refuse a target layer speed-up that a model cannot reach.

    Args:
        target: The layer speed-up, depth / mean exit layer.
        layers: (M,) layers below each exit.
        depth: Layers of the unreduced network.

    Returns:
        The target.

    Raises:
        ConfigError: The model cannot reach it; the message gives the range.
    """
    least, greatest = attainable(layers, depth)
    if not least <= target <= greatest:
        most = "all" if layers[-1] == depth else f"{layers[-1]} of {depth}"
        raise ConfigError(
            f"speed-up {target:g}: should lie between {least:g} ({most} layers) and {greatest:g} ({layers[0]} of {depth} "
            "layers)"
        )
    return target


def choose(recorded: RecordedLogits, criterion: str, target: float, patience: int | None = None) -> Chosen:
    """Choose the threshold whose layer speed-up on recorded samples is nearest to a target.

    Args:
        recorded: Logits (M, N, K), with or without labels.
        criterion: The exit criterion.
        target: The layer speed-up, depth / mean exit layer.
        patience: The criterion's second parameter; None: the default.

    Raises:
        ConfigError: The model can't have this criterion or speed-up.
    """
    check_speed_up(target, recorded.layers, recorded.depth)
    point = tradeoff(recorded, criterion, patience, speed_ups=[target]).nearest(target)
    assert point.threshold is not None
    return Chosen(criterion, point.threshold, target, point.speed_up, point.patience)


def curves(
    recorded: RecordedLogits, patience: int | None = None, *, metric: str | None = None
) -> dict[str, list[list[float]]]:
    """Compute the points of every criterion's curve for :data:`FILE`.

    Args:
        recorded: Logits (M, N, K), with or without labels.
        patience: A second parameter for which criteria that have one get a curve, in addition to their default.
        metric: Name of the task's metric, for scores of labelled samples; None: no scores.

    Returns:
        By the criterion's name: [threshold, layer speed-up] or [threshold, layer speed-up, score], rising in the threshold.
    """
    m = len(recorded.logits)
    by_criterion: dict[str, list[list[float]]] = {}
    for row in with_threshold().values():
        if row.several and m < 2:
            continue
        for counted in dict.fromkeys((row.counted(None, m), row.counted(patience, m))):
            curve = tradeoff(recorded, row.name, counted, metric=metric)
            columns = [curve.thresholds, curve.depth / curve.layers, *([curve.scores] if curve.labelled else [])]
            points = np.stack(columns, axis=1).tolist()
            by_criterion[curve.name] = points[::-1] if row.rising else points
    return by_criterion


def curves_as_json(
    curves: dict[str, list[list[float]]],
    num_exits: int,
    chosen_on: str,
    own: Chosen | None = None,
    validated: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> str:
    """Write the text of :data:`FILE`.

    Args:
        curves: The curves.
        num_exits: M.
        chosen_on: The samples of the curves, in words.
        own: The model's operating point.
        validated: Curves of labelled samples, if `curves` are of unlabelled ones; they give the drop in score at a threshold.
    """
    more: dict[str, Any] = {} if own is None else {"chosen": dataclasses.asdict(own)}
    if validated:
        more["validated"] = validated
    return json.dumps({"chosen_on": chosen_on, "num_exits": num_exits, **more, "curves": curves})


def look_up(curves: dict[str, list[list[float]]], criterion: str, target: float, patience: int | None = None) -> Chosen:
    """Choose a threshold as :func:`choose` does, from saved curves, to within their step of 2 %.

    Args:
        curves: What :func:`read_curves` returned.
        criterion: The exit criterion.
        target: The layer speed-up.
        patience: The criterion's second parameter, not None for criteria that have one.

    Raises:
        ConfigError: There is no such curve.
    """
    row = choosable(criterion)
    name = named(row.name, patience)
    if name not in curves:
        alternatives = "; ".join(key for key in curves if key.startswith(f"{row.name},"))
        alternatives = f" (it has {alternatives})" if alternatives else ""
        raise ConfigError(f"{FILE} has no curve of the exit criterion {name!r}{alternatives}; give a threshold instead")
    points = curves[name]
    if not row.whole and target in (min(p[1] for p in points), max(p[1] for p in points)):
        # Other samples may be more or less confident than the recorded ones; the ends of the range hold for all samples.
        points = [points[0], points[-1]]
    threshold, reached, *_ = min(points, key=lambda point: abs(math.log(point[1] / target)))
    return Chosen(row.name, threshold, target, reached, patience)


def of_request(
    curves: dict[str, list[list[float]]],
    criterion: str,
    speed_up: float,
    patience: int | None,
    layers: Sequence[int],
    depth: int,
) -> Chosen | None:
    """Choose a threshold for the layer speed-up that a request asks for.

    Args:
        curves: The model's curves (:func:`read_curves`).
        criterion: The exit criterion.
        speed_up: The layer speed-up.
        patience: The criterion's second parameter, not None for criteria that have one.
        layers: (M,) layers below each exit.
        depth: Layers of the unreduced network.

    Returns:
        The threshold; None: the full model, since at confidence 1 probabilities that float32 rounds to 1 exit.

    Raises:
        ConfigError: The model cannot reach the speed-up, or no threshold comes near it, where thresholds are not whole numbers.
    """
    chosen = look_up(curves, criterion, check_speed_up(speed_up, layers, depth), patience)
    if speed_up == attainable(layers, depth)[0]:
        return None
    if not chosen.near and not CRITERIA[criterion].whole:
        raise ConfigError(f"speed_up: {chosen.shortfall}; set speed_up to that, or give a threshold")
    return chosen


def read_curves(folder: Path, *, validated: bool = False) -> dict[str, list[list[float]]]:
    """Read the curves of a saved model.

    Args:
        folder: The model's folder.
        validated: Whether to read the curves of labelled validation samples, which calibration keeps.

    Returns:
        Points by criterion, as from :func:`curves`, those of criteria that are not installed here included; empty if the folder has no :data:`FILE`.

    Raises:
        ConfigError: The file is damaged, or a threshold is outside its criterion's range.
    """
    try:
        values: Any = parse_json((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / FILE} can't be read: {error}; {_RESTORE}") from None
    section = "validated" if validated and isinstance(values, dict) and "validated" in values else "curves"
    try:
        curves = {
            str(name): [
                [float(threshold), float(speed_up), *map(float, score)] for threshold, speed_up, *score in points
            ]
            for name, points in values[section].items()
            if points
        }
        if not all(_sound(name, points) for name, points in curves.items()):
            raise ValueError
        num_exits = int(values.get("num_exits", 0)) or math.inf
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ConfigError(f"{folder / FILE}: {section}: no table of thresholds and speed-ups; {_RESTORE}") from None
    num_classes = _num_classes(folder)
    for name, points in curves.items():
        row = CRITERIA.find(name.partition(",")[0])
        for threshold, *_ in points if row else ():
            assert row is not None
            if problem := row.problem(threshold, num_exits, num_classes):
                raise ConfigError(f"{folder / FILE}: {section}.{name}: {problem}; {_RESTORE}")
    return curves


#: What to do about a damaged :data:`FILE`.
_RESTORE = "restore the file, or remove it to use the model without speed_up"


def _num_classes(folder: Path) -> float:
    """K of a saved model, infinite if its config.json does not state it."""
    try:
        return len(parse_json((folder / "config.json").read_text(encoding="utf-8"))["id2label"])
    except (OSError, ValueError, KeyError, TypeError):
        return math.inf


def _sound(name: str, points: Sequence[Sequence[float]]) -> bool:
    """Whether a saved curve has a valid name, finite numbers, speed-ups of at least 1, and scores at all points or none."""
    criterion, _, patience = name.partition(", patience ")
    row = CRITERIA.find(criterion)
    return (
        (row is None or row.has_threshold)
        and (not patience or patience.isdecimal())
        and len({len(point) for point in points}) == 1
        and len(points[0]) <= 3
        and all(math.isfinite(x) for point in points for x in point)
        and all(point[1] >= 1 - 1e-9 for point in points)
    )
