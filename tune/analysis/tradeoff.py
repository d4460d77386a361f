"""Score against mean exit layer, replayed from the validation logits of every finished run: no model is run.

`leebert.tradeoff` computes a curve; this module reads those of a sweep's runs and ranks configurations by them.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from leebert import live
from leebert import tradeoff as core
from leebert.errors import ConfigError, LeebertError, SweepError
from leebert.evaluate import RecordedLogits
from leebert.exits import CRITERIA, REPORTED, with_threshold, without_patience
from leebert.milliseconds import ExitMilliseconds, parse_milliseconds
from leebert.tradeoff import Tradeoff, mean_curve
from tune.store.held_out import cell_logits, cell_name, count_unchecked, warn_unreadable
from tune.store.history import Cell, CellKey, Configuration, EpochScore, History
from tune.store.ledger import LedgerRecord

log = logging.getLogger(__name__)


def tradeoff(held_out: RecordedLogits, metric: str, criterion: str, patience: int | None = None) -> Tradeoff:
    """Compute a run's curve of score against mean exit layer.

    Args:
        held_out: The run's validation logits.
        metric: Name of the task's metric.
        criterion: Name of the exit criterion.
        patience: Its second parameter; None: the default.

    Returns:
        The curve.

    Raises:
        ConfigError: The model has one exit, or the criterion is unknown or has no threshold.
    """
    if len(held_out.logits) < 2:
        raise ConfigError("a model with one exit has no curve, because its speed-up is fixed")
    _check(criterion, patience)
    return core.tradeoff(held_out, criterion, patience, metric=metric)


def _check(criterion: str, patience: int | None) -> None:
    if criterion not in CRITERIA:
        raise ConfigError(f"--criterion {criterion}: {CRITERIA.unknown(criterion)}")
    if not CRITERIA[criterion].has_threshold:
        raise ConfigError(f"--criterion {criterion}: one of {', '.join(with_threshold())}")
    if patience is not None and (problem := without_patience(criterion)):
        raise ConfigError(f"--patience {patience}: {problem}")


def curves(
    folder: Path,
    cells: Mapping[CellKey, LedgerRecord],
    metric: str,
    criterion: str,
    patience: int | None = None,
) -> dict[CellKey, Tradeoff]:
    """Compute the curve of every finished run, except for missing or damaged logits, of which it warns.

    Args:
        folder: The sweep's folder.
        cells: The end records of the runs, as in `SweepState.cells`.
        metric: The task's metric.
        criterion: The exit criterion.
        patience: Its second parameter; None for its default.
    """
    by_run: dict[CellKey, Tradeoff] = {}
    wrong: dict[CellKey, str] = {}
    finished = {key: record for key, record in cells.items() if "held_out" in record}  # others have diverged
    for key, record in live.track(finished.items(), "runs whose validation logits are replayed", then="comparing runs"):
        try:
            held_out, _ = cell_logits(folder, record)
        except SweepError as error:
            wrong[key] = str(error)
            continue
        by_run[key] = tradeoff(held_out, metric, criterion, patience)
    warn_unreadable(folder, wrong)
    if old := count_unchecked(finished.values()):
        log.info(
            f"note: {old} runs were recorded without digests by an older version: damage to their logits can't be detected"
        )
    return by_run


@dataclasses.dataclass(frozen=True)
class RankingObjective:
    """The score of a run: its mean over exits, its score at a layer speed-up or within a time, or the area under its curve.

    Attributes:
        kind: Which of the four.
        speed_up: The layer speed-up; None for the others.
        criterion: The exit criterion of curves.
        patience: Its second parameter; None: the default.
        latency: The largest mean time per sample, in milliseconds; None for the others.
    """

    kind: Literal["score", "speed-up", "area", "latency"] = "score"
    speed_up: float | None = None
    criterion: str = REPORTED
    patience: int | None = None
    latency: float | None = None

    @classmethod
    def of(
        cls, text: str, criterion: str | None = None, patience: int | None = None, *, option: str = "--objective"
    ) -> RankingObjective:
        """Parse an objective.

        Args:
            text: `score`, `area` or, for example, `speed-up=2.5` or `latency=5ms`.
            criterion: Name of the exit criterion; None: normalised entropy.
            patience: Its second parameter; None: the default.
            option: The option that gave the text, for messages.

        Returns:
            The objective.

        Raises:
            ConfigError: The text is no objective, or the criterion is unknown or has no threshold.
        """
        criterion = criterion or REPORTED
        _check(criterion, patience)
        kind, separator, number = text.partition("=")
        argument = f"--speed-up {number}" if option == "--speed-up" else f"{option} {text}"
        if kind == "score" and not separator:
            return cls(criterion=criterion, patience=patience)
        if kind == "area" and not separator:
            return cls("area", criterion=criterion, patience=patience)
        if kind == "speed-up":
            try:
                speed_up = float(number)
            except ValueError:
                speed_up = math.nan
            if 1 <= speed_up < math.inf:
                return cls("speed-up", speed_up, criterion, patience)
            raise ConfigError(f"{argument}: a speed-up is a number of at least 1, such as speed-up=2")
        if kind == "latency":
            return cls("latency", None, criterion, patience, parse_milliseconds(number, f"{option} latency"))
        raise ConfigError(f"{argument}: one of score, area, speed-up=NUMBER, latency=MILLISECONDS")

    def __str__(self) -> str:
        if self.kind == "score":
            return "mean over exits"
        if self.kind == "area":
            return f"mean score over layers under {self.under}"
        return f"score at {self.target} under {self.under}"

    @property
    def target(self) -> str:
        """The layer speed-up or the time in words; empty for other objectives."""
        if self.latency is not None:
            return f"{self.latency:g} ms per sample"
        return "" if self.speed_up is None else f"layer speed-up {self.speed_up:g}"

    @property
    def under(self) -> str:
        """The criterion in words."""
        return self.criterion.replace("_", " ") + ("" if self.patience is None else f" with patience {self.patience}")

    def rescored(
        self, history: History, by_run: Mapping[CellKey, Tradeoff], times: Mapping[str, ExitMilliseconds] | None = None
    ) -> History:
        """Replace every run's score by this one; runs without a curve count as unfinished.

        Args:
            history: The configurations.
            by_run: The curves of their runs.
            times: The time up to each exit by configuration, for a time.

        Raises:
            ConfigError: Naming configuration and run, for a speed-up or time that a run cannot reach.
        """
        if self.kind == "score":
            return history
        return tuple(
            dataclasses.replace(c, cells=tuple(self._cell(c.id, cell, by_run, times or {}) for cell in c.cells))
            for c in history
        )

    def _cell(
        self, config: str, cell: Cell, by_run: Mapping[CellKey, Tradeoff], times: Mapping[str, ExitMilliseconds]
    ) -> Cell:
        if cell.state != "finished" or cell.best is None:
            return cell
        key = (config, cell.seed, cell.fold)
        if key not in by_run:
            return Cell(cell.seed, cell.fold, "running")
        try:
            value = self._value(by_run[key], times.get(config))
        except ConfigError as error:
            raise ConfigError(f"{cell_name(key)}: {error}") from None
        return Cell(cell.seed, cell.fold, "finished", (), EpochScore(cell.best.epoch, value))

    def _value(self, curve: Tradeoff, times: ExitMilliseconds | None) -> float:
        if self.latency is not None:
            assert times is not None
            return times.score_at(curve, self.latency)
        return curve.area() if self.speed_up is None else curve.at_speed_up(self.speed_up)

    def in_reach(
        self,
        configuration: Configuration,
        by_run: Mapping[CellKey, Tradeoff],
        times: Mapping[str, ExitMilliseconds] | None = None,
    ) -> bool:
        """Return whether all runs of a configuration reach the speed-up or the time, if this is one.

        Args:
            configuration: The configuration.
            by_run: The curves of its runs.
            times: The time up to each exit by configuration, for a time.
        """
        curves = [by_run.get((configuration.id, cell.seed, cell.fold)) for cell in configuration.cells]
        if self.latency is not None:
            timed = (times or {})[configuration.id]
            return all(t is None or timed.reaches(t, self.latency) for t in curves)
        return self.speed_up is None or all(t is None or t.reaches(self.speed_up) for t in curves)


def curves_or_none(
    folder: Path,
    cells: Mapping[CellKey, LedgerRecord],
    metric: str,
    criterion: str = REPORTED,
) -> dict[CellKey, Tradeoff]:
    """Return :func:`curves`; none if they cannot be computed, such as for models with one exit.

    Args:
        folder: The sweep's folder.
        cells: Records of the runs' ends.
        metric: Name of the task's metric.
        criterion: Name of the exit criterion.
    """
    try:
        return curves(folder, cells, metric, criterion)
    except LeebertError:
        return {}


@dataclasses.dataclass(frozen=True)
class FrontPoint:
    """One point of the Pareto front: no configuration scores higher at the same mean exit layer, or in the same time.

    Attributes:
        configuration: Id of the configuration.
        layers: Mean exit layer.
        score: Score, as a fraction.
        milliseconds: Mean time per sample; None: not measured.
    """

    configuration: str
    layers: float
    score: float
    milliseconds: float | None = None


def pareto(
    history: History,
    by_run: Mapping[CellKey, Tradeoff],
    times: Mapping[str, ExitMilliseconds] | None = None,
    *,
    by_time: bool = True,
) -> list[FrontPoint]:
    """Compute the Pareto front of score against mean exit layer, or against time.

    Args:
        history: The configurations.
        by_run: Curves by configuration, seed and fold. A configuration that lacks one of its curves is ignored.
        times: The time up to each exit by configuration, for the points' milliseconds.
        by_time: Whether the front is that of score against time, if there are times.

    Returns:
        The points, fewest layers or shortest time first.
    """
    points = []
    for c in history:
        curves = [by_run[c.id, k.seed, k.fold] for k in c.cells if (c.id, k.seed, k.fold) in by_run]
        if len(curves) == len(c.cells):  # means over different runs are not comparable
            layers, scores = mean_curve(curves)
            taken = times[c.id].at_layers(layers) if times else [None] * len(layers)
            points += [
                FrontPoint(c.id, float(x), float(y), None if t is None else float(t))
                for x, y, t in zip(layers, scores, taken, strict=True)
            ]
    front: list[FrontPoint] = []

    def cost(point: FrontPoint) -> float:
        return point.milliseconds if by_time and point.milliseconds is not None else point.layers

    for point in sorted(points, key=lambda p: (cost(p), -p.score, p.configuration)):
        if not front or point.score > front[-1].score:
            front.append(point)
    return front
