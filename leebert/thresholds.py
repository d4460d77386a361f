"""Which threshold gives a speed-up: chosen by replay on recorded logits, of which the development split is never one."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from leebert.config import THRESHOLD_SLACK, StrategyName
from leebert.errors import ConfigError
from leebert.evaluate import HeldOut
from leebert.exits import make_strategy, replay

#: The file of a model's folder that says which threshold gives which speed-up.
FILE = "exits.json"

#: Rules for which a threshold can be chosen.
RULES: tuple[StrategyName, ...] = ("entropy", "normalised_entropy", "confidence", "patience")

# A curve's neighbours differ by at most 2 % in speed-up, or by a millionth of the threshold's range.
_STEP, _FINEST, _HALVINGS = 0.02, 1e-6, 40

#: How far a layer ratio on other rows may be off what was aimed at before it is called missed.
MISSED = 0.1

#: Standard normal quantile of a two-sided interval at 95 %.
_Z95 = 1.96


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A rule with the threshold that comes nearest to the speed-up `asked`, and the one `reached` on the recorded rows."""

    strategy: StrategyName
    threshold: float
    asked: float
    reached: float

    @property
    def near(self) -> bool:
        """Whether it is within 5 % of what was asked: patience has only M−1 thresholds."""
        return abs(self.reached / self.asked - 1) <= 0.05

    @property
    def aim(self) -> float:
        """What other rows are held to: the speed-up asked for, for patience the nearest that it attains."""
        return self.reached if self.strategy == "patience" else self.asked

    def missed(self, speed_up: float) -> bool:
        """Whether other rows' speed-up is off by more than 10 %."""
        return abs(speed_up / self.aim - 1) > MISSED

    @property
    def shortfall(self) -> str:
        """What the nearest threshold means where it is not near, in words."""
        why = "its thresholds are whole numbers" if self.strategy == "patience" else "rows leave together"
        return (
            f"{self.strategy} does not attain a speed-up of {self.asked:g}, since {why}: the nearest is {self.reached:.2f}, "
            f"at {self.threshold:.6g}"
        )


def layer_ratio(recorded: HeldOut, strategy: str, threshold: float | None) -> float:
    """M / mean layers executed under a rule, on recorded logits."""
    return len(recorded.logits) / float(_layers(recorded, strategy, threshold).mean())


def ratio_interval(recorded: HeldOut, strategy: str, threshold: float | None) -> tuple[float, float]:
    """The layer ratio to expect on other rows of the same kind, (low, high) at 95 %: by the standard error of the mean
    layers, which is also that of a threshold chosen on these rows."""
    layers, m = _layers(recorded, strategy, threshold), len(recorded.logits)
    mean, off = float(layers.mean()), _Z95 * float(layers.std()) / math.sqrt(len(layers))
    return m / min(m, mean + off), m / max(1, mean - off)


def rows_needed(num_exits: int, speed_up: float) -> int:
    """How many rows put the mean layers on others within 10 % of M / `speed_up` at 95 %, however they leave.

    Layers lie between 1 and M, so that with the mean M / speed-up their variance is at most (mean − 1)(M − mean).
    """
    mean = num_exits / speed_up
    return max(1, math.ceil((_Z95 / (MISSED * mean)) ** 2 * (mean - 1) * (num_exits - mean)))


def _layers(recorded: HeldOut, strategy: str, threshold: float | None) -> np.ndarray:
    """Layers executed for each row, (N,)."""
    m, _, k = recorded.logits.shape
    return replay(make_strategy(strategy, threshold, num_exits=m, num_classes=k), recorded.logits) + 1


def check_speed_up(asked: float, num_exits: int) -> float:
    """`asked` as it is, if rows could leave so early; ConfigError otherwise."""
    if not 1 <= asked <= num_exits:
        raise ConfigError(
            f"speed-up {asked:g}: lies between 1 (all layers) and {num_exits} (one of {num_exits} layers)"
        )
    return asked


def choose(recorded: HeldOut, strategy: str, asked: float) -> Chosen:
    """The threshold whose speed-up, M / mean layers, on the recorded rows is nearest to `asked`."""
    m, _, k = recorded.logits.shape
    check_speed_up(asked, m)
    name = choosable(strategy)

    def reached(threshold: float) -> float:
        return layer_ratio(recorded, name, threshold)

    if name == "patience":
        points = {float(p): reached(p) for p in range(1, max(2, m))}
    elif asked in (1, m):
        threshold = _end(name, k, asked)
        return Chosen(name, threshold, asked, reached(threshold))
    else:
        low, high = _range(name, k)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if (reached(middle) < asked) == (name != "confidence"):
                low = middle
            else:
                high = middle
        points = {t: reached(t) for t in (low, high)}
    threshold = min(points, key=lambda t: abs(math.log(points[t] / asked)))
    return Chosen(name, threshold, asked, points[threshold])


def curves(recorded: HeldOut) -> dict[str, list[list[float]]]:
    """[threshold, speed-up] for each rule, rising in the threshold, fine enough to find any speed-up by :func:`look_up`."""
    m, _, k = recorded.logits.shape
    found: dict[str, list[list[float]]] = {}
    for name in RULES:

        def reached(threshold: float, name: str = name) -> float:
            return layer_ratio(recorded, name, threshold)

        if name == "patience":
            found[name] = [[float(p), reached(p)] for p in range(1, max(2, m))]
        elif name == "normalised_entropy":  # entropy's, in another unit
            scaled = (t / math.log(k) for t, _ in found["entropy"])
            found[name] = [[t, reached(t)] for t in scaled]
        else:
            found[name] = _refined(reached, *_range(name, k))
    return found


def look_up(curves: dict[str, list[list[float]]], strategy: str, asked: float) -> Chosen:
    """As :func:`choose`, from a model's curves: to within their 2 %."""
    name = choosable(strategy)
    if name not in curves:
        raise ConfigError(f"this model has no curve of the rule {name!r}: give a threshold")
    points = curves[name]
    if name != "patience" and asked in (min(s for _, s in points), max(s for _, s in points)):
        # Other rows may be less sure, or surer, than any recorded one: the end of the range holds for them, too.
        points = [points[0], points[-1]]
    threshold, reached = min(points, key=lambda point: abs(math.log(point[1] / asked)))
    return Chosen(name, threshold, asked, reached)


def read_curves(folder: Path) -> dict[str, list[list[float]]]:
    """The curves of a saved model; empty where neither a refit nor a calibration has made any."""
    try:
        found: Any = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / FILE} can't be read: {error}") from None
    try:
        return {
            str(rule): [[float(threshold), float(speed_up)] for threshold, speed_up in points]
            for rule, points in found["curves"].items()
            if points
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ConfigError(
            f"{folder / FILE}: no table of thresholds and speed-ups; remove the file to serve the model without speed_up"
        ) from None


def choosable(strategy: str) -> StrategyName:
    """`strategy` as it is, if a threshold of it gives a speed-up; ConfigError otherwise."""
    if strategy not in RULES:
        raise ConfigError(f"no threshold of the rule {strategy!r} gives a speed-up; use one of {', '.join(RULES)}")
    return strategy


def _range(strategy: str, classes: int) -> tuple[float, float]:
    """From the threshold at which hardly any row leaves early to the one at which all do, or the other way round.

    The end at which all leave lies a little beyond what a row can have, since float32 rounds.
    """
    beyond = 1 + THRESHOLD_SLACK / 2
    if strategy == "confidence":
        return 1 / classes / beyond, 1.0
    return 0.0, beyond * (math.log(classes) if strategy == "entropy" else 1.0)


def _end(strategy: str, classes: int, asked: float) -> float:
    """The end of a range at which no row leaves early (`asked` 1), or all leave at the first exit."""
    low, high = _range(strategy, classes)
    return high if (asked == 1) == (strategy == "confidence") else low


def _refined(reached: Callable[[float], float], low: float, high: float) -> list[list[float]]:
    points = {low: reached(low), high: reached(high)}
    open_ = [(low, high)]
    finest = _FINEST * (high - low)
    while open_:
        a, b = open_.pop()
        if b - a < finest or abs(math.log(points[a] / points[b])) <= _STEP:
            continue
        middle = (a + b) / 2
        points[middle] = reached(middle)
        open_ += [(a, middle), (middle, b)]
    return [[t, points[t]] for t in sorted(points)]
