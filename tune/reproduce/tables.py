"""Compute a table from results: means and standard errors over seeds, speed-ups, and paired tests against baselines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from leebert.exits import CRITERIA, FULL_MODEL
from leebert.methods import METHODS
from tune.analysis.stats import Interval, holm_intervals
from tune.reproduce.outcomes import CriterionResult, ReproducedCell
from tune.reproduce.paper import PaperRow, PaperTable
from tune.reproduce.results import Costs, Results

#: A baseline counts as equally fast if its layer speed-up is at most this share below that of the paper's own method.
AS_FAST = 0.1

#: The fewest shared seeds for a test: with one degree of freedom the spread can't be estimated.
LEAST_TESTED = 3


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its standard error, s/√n; NaN with one seed."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate | None:
        if not values:
            return None
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(float(np.mean(values)), error)


@dataclasses.dataclass(frozen=True)
class TableRow:
    """One row of a reproduced table; scores are fractions, speed-ups are against the whole network.

    Attributes:
        row: The paper's row.
        by_seed: The score of each seed.
        title: The title, with the number of layers of a shortened network.
        score: The mean score.
        layers: Layer speed-up: depth / mean exit layer over seeds.
        held_out: Each seed's layer speed-up on validation samples, by which thresholds are chosen; empty for one exit.
        time: Wall-clock speed-up; None if not measured.
        operations: Speed-up in multiply-adds; None if not measured.
        parameters: The number of parameters.
        minutes: Minutes of training to the best epoch.
        epochs: Epochs trained over all stages, a mean over seeds.
        thresholds: Each seed's threshold.
        margin: Score of the group's own method minus this row's, paired over at least two seeds; with p and interval,
            corrected over the group's rows, from :data:`LEAST_TESTED` seeds on.
    """

    row: PaperRow
    by_seed: Mapping[int, float]
    title: str
    score: Estimate | None = None
    layers: float | None = None
    held_out: tuple[float, ...] = ()
    time: float | None = None
    operations: float | None = None
    parameters: int | None = None
    minutes: Estimate | None = None
    epochs: float | None = None
    thresholds: tuple[float | None, ...] = ()
    margin: Interval | None = None


def lines(table: PaperTable, rows: Sequence[PaperRow], results: Results, task: str) -> tuple[TableRow, ...]:
    """Compute every row of a table from the runs that exist.

    Args:
        table: The paper's table.
        rows: The rows to show.
        results: The results.
        task: The task's name.

    Returns:
        One row each.
    """
    base, aim = _base(results), table.aim(task)
    return compared([_line(row, results.of(row.method, row.keep), aim, results.costs, base) for row in rows])


def best_baseline(compared: Sequence[TableRow], group: str) -> TableRow | None:
    """Return the equally fast baseline with the smallest margin below the group's own method, on shared seeds.

    Args:
        compared: The table's rows.
        group: The group.

    Returns:
        The baseline; None if there is none.
    """
    subject = next((line for line in compared if line.row.group == group and line.row.role == "subject"), None)
    least = (1 - AS_FAST) * ((subject.layers if subject else None) or 0.0)
    baselines = [
        line
        for line in compared
        if line.row.group == group and line.row.role == "baseline" and line.margin and (line.layers or 0.0) >= least
    ]
    return min(baselines, key=lambda line: line.margin.mean if line.margin else math.inf, default=None)


def _line(
    row: PaperRow, cells: Mapping[int, ReproducedCell], aim: float, costs: Costs, base: tuple[str, int]
) -> TableRow:
    by_seed = {seed: (cell, outcome) for seed, cell in cells.items() if (outcome := cell.exiting(row.criterion, aim))}
    if not by_seed:
        return TableRow(row, {}, row.title)
    pairs = list(by_seed.values())
    scores = {seed: outcome.score for seed, (_, outcome) in by_seed.items()}
    return TableRow(
        row,
        scores,
        _title(row, pairs[0][0]),
        score=Estimate.of(list(scores.values())),
        layers=pairs[0][0].depth / float(np.mean([outcome.layers for _, outcome in pairs])),
        held_out=tuple(
            outcome.held_out for cell, outcome in pairs if len(cell.exits) > 1 and CRITERIA[row.criterion].early
        ),
        time=_ratio([_seconds(cell, outcome, costs) for cell, outcome in pairs], _base_seconds(costs, base)),
        operations=_ratio(
            [_expected(costs.operations.get(cell.structure), outcome) for cell, outcome in pairs],
            _at(costs.operations.get(base[0]), base[1]),
        ),
        parameters=costs.parameters.get(pairs[0][0].structure),
        minutes=Estimate.of([cell.minutes_to_best for cell, _ in pairs]),
        epochs=float(np.mean([cell.epochs for cell, _ in pairs])),
        thresholds=tuple(outcome.threshold for _, outcome in pairs),
    )


def _title(row: PaperRow, cell: ReproducedCell) -> str:
    """Return a row's title; for a shortened network its number of layers."""
    return f"{cell.exit_layers[-1]} of {cell.depth} layers" if METHODS[row.method].titled_by_layers else row.title


def compared(rows: Sequence[TableRow]) -> tuple[TableRow, ...]:
    """Compare each group's own method with all other rows of the group that share seeds with it."""
    margins: dict[int, Interval] = {}
    for group in {line.row.group for line in rows}:
        members = [i for i, line in enumerate(rows) if line.row.group == group]
        subject = next((rows[i] for i in members if rows[i].row.role == "subject"), None)
        if subject is None:
            continue
        paired = {}
        for i in members:
            seeds = sorted(subject.by_seed.keys() & rows[i].by_seed.keys())
            if rows[i] is not subject and rows[i].row.role != "base" and len(seeds) > 1:
                paired[i] = [subject.by_seed[s] - rows[i].by_seed[s] for s in seeds]
        margins |= {i: _untested(differences) for i, differences in paired.items()}
        tested = {i: differences for i, differences in paired.items() if len(differences) >= LEAST_TESTED}
        # The tests are about these data only, on which seeds are independent repetitions: no correction for shared data.
        margins |= dict(zip(tested, holm_intervals(list(tested.values()), 0.0), strict=True))
    return tuple(dataclasses.replace(line, margin=margins.get(i)) for i, line in enumerate(rows))


def _untested(differences: Sequence[float]) -> Interval:
    """Return the mean of paired differences without p and interval."""
    return Interval(float(np.mean(differences)), math.nan, math.nan, math.nan, len(differences))


# Costs. A missing value makes a speed-up None; it is never a mean over the remaining values.


def _base(results: Results) -> tuple[str, int]:
    """Return the reference of wall-clock and operations speed-ups: the fine-tuned network, else the unreduced one; last exit."""
    whole = {name for name, method in METHODS.items() if method.group == "whole network"}
    return next((cell.structure for cell in results.cells if cell.method in whole), ""), -1


def networks(results: Results) -> dict[str, tuple[int, frozenset[str]]]:
    """List the networks to measure: structure → number of exits, and the exit criteria of its results.

    All networks of the results count, so that the costs of different tables can be compared.
    """
    result: dict[str, tuple[int, frozenset[str]]] = {}
    for cell in results.cells:
        criteria = result.get(cell.structure, (0, frozenset()))[1]
        result[cell.structure] = len(cell.exits), criteria | {outcome.criterion for outcome in cell.outcomes}
    return result


def _expected(up_to: Sequence[float] | None, outcome: CriterionResult) -> float | None:
    """Return the mean cost per sample, from the cost up to each exit and the number of samples that exit there."""
    if up_to is None:
        return None
    return float(np.dot(outcome.counts, up_to) / np.sum(outcome.counts))


def _seconds(cell: ReproducedCell, outcome: CriterionResult, costs: Costs) -> float | None:
    return _expected(costs.seconds.get(cell.structure, {}).get(outcome.criterion), outcome)


def _base_seconds(costs: Costs, base: tuple[str, int]) -> float | None:
    return _at(costs.seconds.get(base[0], {}).get(FULL_MODEL), base[1])


def _at(values: Sequence[float] | None, index: int) -> float | None:
    return None if values is None else values[index]


def _ratio(costs: Sequence[float | None], whole: float | None) -> float | None:
    measured = [cost for cost in costs if cost is not None]
    return whole / float(np.mean(measured)) if whole is not None and len(measured) == len(costs) else None
