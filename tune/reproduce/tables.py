"""A table's figures from results: means and standard errors over seeds, speed-ups, and paired tests against rivals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from leebert.exits import CRITERIA, FULL_MODEL
from leebert.methods import METHODS
from tune.analysis.stats import Interval, holm_intervals
from tune.reproduce.outcomes import Cell, Outcome
from tune.reproduce.paper import Row, Table
from tune.reproduce.results import Costs, Results

#: A rival is as fast as the subject if its speed-up in layers is no more than so much below, as a share.
AS_FAST = 0.1

#: Fewer shared seeds are compared, but not tested: with one degree of freedom the spread is anybody's guess.
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
class Line:
    """One row of ours. Scores are fractions; speed-ups are against the whole network.

    by_seed: the score of each seed. title: the row's, with the layers of a shortened network. layers: the depth over the seeds'
    mean layers. held_out: each seed's on held-out rows, where thresholds are chosen; empty for one exit. time,
    operations: in wall-clock time and multiply-adds, None where not measured. epochs: how many were trained, over all
    stages, a mean over seeds.
    margin: the group's subject minus this row, paired over two seeds or more, p and interval, from
        :data:`LEAST_TESTED` on, for all rows of the group together.
    """

    row: Row
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


def lines(table: Table, rows: Sequence[Row], results: Results, task: str) -> tuple[Line, ...]:
    """Every row with what there is of it."""
    base, aim = _base(results), table.aim(task)
    return _compared([_line(row, results.of(row.method, row.keep), aim, results.costs, base) for row in rows])


def best_rival(compared: Sequence[Line], group: str) -> Line | None:
    """The rival that the group's subject is least ahead of, on the seeds that they share, of those that are as fast."""
    subject = next((line for line in compared if line.row.group == group and line.row.role == "subject"), None)
    least = (1 - AS_FAST) * ((subject.layers if subject else None) or 0.0)
    rivals = [
        line
        for line in compared
        if line.row.group == group and line.row.role == "rival" and line.margin and (line.layers or 0.0) >= least
    ]
    return min(rivals, key=lambda line: line.margin.mean if line.margin else math.inf, default=None)


def _line(row: Row, cells: Mapping[int, Cell], aim: float, costs: Costs, base: tuple[str, int]) -> Line:
    found = {seed: (cell, outcome) for seed, cell in cells.items() if (outcome := cell.exiting(row.criterion, aim))}
    if not found:
        return Line(row, {}, row.title)
    pairs = list(found.values())
    scores = {seed: outcome.score for seed, (_, outcome) in found.items()}
    return Line(
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


def _title(row: Row, cell: Cell) -> str:
    """Of a row that is named by a share of the layers, which these are."""
    return f"{cell.exit_layers[-1]} of {cell.depth} layers" if METHODS[row.method].titled_by_layers else row.title


def _compared(made: Sequence[Line]) -> tuple[Line, ...]:
    """The lines with each group's subject compared with all other rows of the group that share seeds with it."""
    margins: dict[int, Interval] = {}
    for group in {line.row.group for line in made}:
        members = [i for i, line in enumerate(made) if line.row.group == group]
        subject = next((made[i] for i in members if made[i].row.role == "subject"), None)
        if subject is None:
            continue
        paired = {}
        for i in members:
            seeds = sorted(subject.by_seed.keys() & made[i].by_seed.keys())
            if made[i] is not subject and made[i].row.role != "base" and len(seeds) > 1:
                paired[i] = [subject.by_seed[s] - made[i].by_seed[s] for s in seeds]
        margins |= {i: _untested(differences) for i, differences in paired.items()}
        tested = {i: differences for i, differences in paired.items() if len(differences) >= LEAST_TESTED}
        # Seeds share the data, of which nothing is said; as repetitions on it they are independent: no correction.
        margins |= dict(zip(tested, holm_intervals(list(tested.values()), 0.0), strict=True))
    return tuple(dataclasses.replace(line, margin=margins.get(i)) for i, line in enumerate(made))


def _untested(differences: Sequence[float]) -> Interval:
    return Interval(float(np.mean(differences)), math.nan, math.nan, math.nan, len(differences))


# Costs. A missing one makes the whole figure None, never a mean over what is there.


def _base(results: Results) -> tuple[str, int]:
    """The network that speed-ups in time and operations are against, and its exit: plainly fine-tuned, else every exit."""
    whole = {name for name, method in METHODS.items() if method.group == "whole network"}
    return next((cell.structure for cell in results.cells if cell.method in whole), ""), -1


def networks(results: Results) -> dict[str, tuple[int, frozenset[str]]]:
    """The networks that costs are measured of: structure → number of exits, and every exit criterion of its outcomes.

    All that there are, whatever table is asked for: figures of one table can then be compared with another's.
    """
    found: dict[str, tuple[int, frozenset[str]]] = {}
    for cell in results.cells:
        known = found.get(cell.structure, (0, frozenset()))[1]
        found[cell.structure] = len(cell.exits), known | {outcome.criterion for outcome in cell.outcomes}
    return found


def _expected(up_to: Sequence[float] | None, outcome: Outcome) -> float | None:
    """The mean cost of a row, from the cost up to each exit and how many rows left there."""
    if up_to is None:
        return None
    return float(np.dot(outcome.counts, up_to) / np.sum(outcome.counts))


def _seconds(cell: Cell, outcome: Outcome, costs: Costs) -> float | None:
    return _expected(costs.seconds.get(cell.structure, {}).get(outcome.criterion), outcome)


def _base_seconds(costs: Costs, base: tuple[str, int]) -> float | None:
    return _at(costs.seconds.get(base[0], {}).get(FULL_MODEL), base[1])


def _at(values: Sequence[float] | None, index: int) -> float | None:
    return None if values is None else values[index]


def _ratio(costs: Sequence[float | None], whole: float | None) -> float | None:
    known = [cost for cost in costs if cost is not None]
    return whole / float(np.mean(known)) if whole is not None and len(known) == len(costs) else None
