"""Score against speed, replayed from the held-out logits that every cell has left: no model is run.

A speed-up is the number of exits M divided by the mean number of layers executed. Between two neighbouring thresholds
the score is interpolated in layers: what one gets by drawing the threshold anew for every row (exactly so for accuracy).
An area is over all of 1 to M layers, for every rule: over what a cell's rule reaches, leaving late would pay.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from leebert.errors import ConfigError, LeebertError, SweepError
from leebert.evaluate import HeldOut, curve, replay_point
from leebert.exits import check_rule, make_strategy, measured
from leebert.rules import RULES, without_patience
from tune.store.held_out import CellKey, cell_logits, named, unchecked, warn_of
from tune.store.history import Cell, Configuration, EpochScore, History
from tune.store.ledger import Record

#: Thresholds of a curve whose rule has a continuous one.
THRESHOLDS = 41

#: A replay that takes longer is announced.
LONG_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Tradeoff:
    """One cell under one rule: mean layers, rising from (T,) thresholds' fastest to M, and the score at each.

    `first_exit` is the score of running exit 1 alone, to which a rule that compares exits has no threshold that leads.
    """

    rule: str
    layers: np.ndarray
    scores: np.ndarray
    exits: int
    first_exit: float

    @property
    def fastest(self) -> float:
        """The greatest speed-up that the rule reaches."""
        return self.exits / float(self.layers[0])

    def reaches(self, speed_up: float) -> bool:
        return bool(self.layers[0] - 1e-9 <= self.exits / speed_up <= self.exits)

    def at_speed_up(self, speed_up: float) -> float:
        """The score at M / `speed_up` layers. ConfigError for one that the rule can't reach."""
        if not self.reaches(speed_up):
            raise ConfigError(
                f"speed-up {speed_up:g}: {self.rule} reaches from 1 to {self.fastest:.2f} on {self.exits} exits"
            )
        return float(np.interp(self.exits / speed_up, self.layers, self.scores))

    def area(self) -> float:
        """The mean score over 1 to M layers: the area under the curve drawn down to exit 1 alone, as a fraction."""
        layers, scores = np.append(1.0, self.layers), np.append(self.first_exit, self.scores)
        return float(np.trapezoid(scores, layers)) / (self.exits - 1)


def tradeoff(held_out: HeldOut, metric: str, rule: str, patience: int | None = None) -> Tradeoff:
    """A cell's curve; its thresholds are spread over the values that its logits take, so that no stretch is empty.

    `patience` is the rule's second parameter; None: its default.
    """
    m = len(held_out.logits)
    if m < 2:
        raise ConfigError("a model with one exit has one speed only")
    _check(rule, patience)
    check_rule(rule, patience, m)
    points = curve(held_out, metric, rule, _thresholds(held_out, rule), patience)
    points += curve(held_out, metric, "never", [None])
    told = [(point.layers, point.measures["score"]) for point in points]
    alone = HeldOut(held_out.logits[:1], held_out.labels)
    first = replay_point(alone, metric, "never", None).measures["score"]
    if not RULES[rule].several:  # an end that thresholds only come near to where a row is exactly undecided
        told.append((1.0, first))
    by_layers: dict[float, list[float]] = {}
    for at, score in told:
        by_layers.setdefault(round(at, 9), []).append(score)
    layers = sorted(by_layers)
    scores = [float(np.mean(by_layers[x])) for x in layers]
    return Tradeoff(rule, np.array(layers), np.array(scores), m, first)


def _check(rule: str, patience: int | None) -> None:
    if rule not in RULES:
        raise ConfigError(f"--rule {rule}: one of {', '.join(RULES)}")
    if patience is not None and (problem := without_patience(rule)):
        raise ConfigError(f"--patience {patience}: {problem}")


def _thresholds(held_out: HeldOut, rule: str) -> list[float | None]:
    m, _, k = held_out.logits.shape
    low, high = RULES[rule].span(m, k)
    if RULES[rule].whole:
        return [float(p) for p in range(1, m)]
    strategy: Any = make_strategy(rule, high, num_exits=m, num_classes=k)
    values = measured(strategy, held_out.logits[:-1])
    values = values[np.isfinite(values)]  # the first exit has none to be compared with
    spread = np.quantile(values, np.linspace(0, 1, THRESHOLDS)) if values.size else ()
    return [float(t) for t in np.unique(np.clip([low, *spread, high], low, high))]


def curves(
    folder: Path,
    cells: Mapping[CellKey, Record],
    metric: str,
    rule: str,
    patience: int | None = None,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> dict[CellKey, Tradeoff]:
    """The curve of every finished cell (the ledger's `State.cells`), without those whose logits are missing or damaged.

    Warns of the latter. `say` is told how long it will take, where that is long.
    """
    found: dict[CellKey, Tradeoff] = {}
    wrong: dict[CellKey, str] = {}
    finished = {key: record for key, record in cells.items() if "held_out" in record}  # others have diverged
    for number, (key, record) in enumerate(finished.items(), start=1):
        started = time.monotonic()
        try:
            held_out, _ = cell_logits(folder, record)
        except SweepError as error:
            wrong[key] = str(error)
            continue
        found[key] = tradeoff(held_out, metric, rule, patience)
        left = (len(finished) - number) * (time.monotonic() - started)
        if number == 2 and left > LONG_SECONDS:  # the first also loads libraries
            say(f"replaying the held-out logits of {len(finished)} cells takes about {left:.0f} s")
    warn_of(folder, wrong)
    if old := unchecked(finished.values()):
        say(
            f"note: {old} cells were recorded without digests by an older version: damage to their logits can't be seen"
        )
    return found


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a cell is judged by: its mean over exits, its score at a speed-up, or the area under score against layers."""

    kind: Literal["score", "speed-up", "area"] = "score"
    speed_up: float | None = None
    rule: str = "normalised_entropy"
    patience: int | None = None

    @classmethod
    def of(
        cls, text: str, rule: str = "normalised_entropy", patience: int | None = None, *, option: str = "--objective"
    ) -> Objective:
        """From `score`, `area` or `speed-up=2.5`. Raises ConfigError, which names the `option` that was given."""
        _check(rule, patience)
        kind, separator, number = text.partition("=")
        said = f"--speed-up {number}" if option == "--speed-up" else f"{option} {text}"
        if kind == "score" and not separator:
            return cls(rule=rule, patience=patience)
        if kind == "area" and not separator:
            return cls("area", rule=rule, patience=patience)
        if kind == "speed-up":
            try:
                speed_up = float(number)
            except ValueError:
                speed_up = math.nan
            if 1 <= speed_up < math.inf:
                return cls("speed-up", speed_up, rule, patience)
            raise ConfigError(f"{said}: a speed-up is a number of at least 1, such as speed-up=2")
        raise ConfigError(f"{said}: one of score, area, speed-up=NUMBER")

    def __str__(self) -> str:
        if self.kind == "score":
            return "mean over exits"
        if self.kind == "area":
            return f"mean score over layers under {self.under}"
        return f"score at speed-up {self.speed_up:g} under {self.under}"

    @property
    def under(self) -> str:
        """The rule in words."""
        return self.rule.replace("_", " ") + ("" if self.patience is None else f" with patience {self.patience}")

    def rescored(self, history: History, found: Mapping[CellKey, Tradeoff]) -> History:
        """The history with every cell's score replaced by this one; cells without a curve count as unfinished.

        Raises ConfigError, which names configuration and cell, for a speed-up out of a cell's reach.
        """
        if self.kind == "score":
            return history
        return tuple(
            dataclasses.replace(c, cells=tuple(self._cell(c.id, cell, found) for cell in c.cells)) for c in history
        )

    def _cell(self, config: str, cell: Cell, found: Mapping[CellKey, Tradeoff]) -> Cell:
        if cell.state != "finished" or cell.best is None:
            return cell
        key = (config, cell.seed, cell.fold)
        if key not in found:
            return Cell(cell.seed, cell.fold, "running")
        try:
            value = found[key].area() if self.speed_up is None else found[key].at_speed_up(self.speed_up)
        except ConfigError as error:
            raise ConfigError(f"{named(key)}: {error}") from None
        return Cell(cell.seed, cell.fold, "finished", (), EpochScore(cell.best.epoch, value))

    def in_reach(self, configuration: Configuration, found: Mapping[CellKey, Tradeoff]) -> bool:
        """Whether all cells of a configuration reach the speed-up, if this is one."""
        mine = (found.get((configuration.id, cell.seed, cell.fold)) for cell in configuration.cells)
        return self.speed_up is None or all(t is None or t.reaches(self.speed_up) for t in mine)


def curves_if_there(
    folder: Path,
    cells: Mapping[CellKey, Record],
    metric: str,
    rule: str = "normalised_entropy",
) -> dict[CellKey, Tradeoff]:
    """:func:`curves`, for what is good to have: none where a model has one exit."""
    try:
        return curves(folder, cells, metric, rule)
    except LeebertError:
        return {}


@dataclasses.dataclass(frozen=True)
class FrontPoint:
    """One point of the Pareto front: no configuration scores higher with as few layers."""

    configuration: str
    layers: float
    score: float


def mean_curve(found: list[Tradeoff], steps: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Layers (from the slowest cell's fastest point to M, `steps` to a layer) and the cells' mean score there."""
    exits, low = found[0].exits, max(float(t.layers[0]) for t in found)
    grid = np.arange(1, exits + 1e-9, 1 / steps)
    grid = np.unique(np.concatenate([[low], grid[grid > low]]))
    return grid, np.mean([np.interp(grid, t.layers, t.scores) for t in found], axis=0)


def pareto(history: History, found: Mapping[CellKey, Tradeoff]) -> list[FrontPoint]:
    """The front of score against mean layers over these configurations, fewest layers first.

    A configuration without the curve of one of its cells is left out.
    """
    points = []
    for c in history:
        mine = [found[c.id, k.seed, k.fold] for k in c.cells if (c.id, k.seed, k.fold) in found]
        if len(mine) == len(c.cells):  # means over other cells can't be compared
            points += [FrontPoint(c.id, float(x), float(y)) for x, y in zip(*mean_curve(mine), strict=True)]
    front: list[FrontPoint] = []
    for point in sorted(points, key=lambda p: (p.layers, -p.score, p.configuration)):
        if not front or point.score > front[-1].score:
            front.append(point)
    return front
