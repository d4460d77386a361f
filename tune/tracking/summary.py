"""Summaries over all configurations, for MLflow: per method, and paired differences; correct at any number of runs.

The verdict on the two methods that `compare` would choose gives the sweep's sentence and the pictures of its saved views.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from leebert.errors import LeebertError
from leebert.methods import METHODS, Method
from leebert.tradeoff import Tradeoff
from tune.analysis import pictures
from tune.analysis.compare import Comparison, PairedComparison, line_verdict
from tune.analysis.compare_sweeps import OnSweep, at_speed_ups, compare_pool
from tune.analysis.compare_text import based_on
from tune.analysis.figures import colour
from tune.analysis.labels import PAIR_COLOURS, SYMBOLS, algorithm_label
from tune.analysis.stats import Interval, corrected_t
from tune.analysis.sweeps import LoadedSweep, SweepPool
from tune.analysis.verdict import Verdict, choose_sides
from tune.space import SweepSpec
from tune.store.curves import CellCurves
from tune.store.folder import SweepFolder
from tune.store.history import CellKey, History
from tune.store.ledger import SweepState
from tune.store.ranking import cells_of, completed, exit_scores
from tune.tracking import names
from tune.tracking.events import Picture, Summary


@dataclasses.dataclass(frozen=True)
class Summaries:
    """All summaries of a sweep.

    Attributes:
        events: One per method, and one per pair of methods whose configurations can be paired; of pairs with several
            values of an option that only one side has, also one per value.
        sentence: The verdict on the two methods that `compare` would choose; empty without one.
    """

    events: tuple[Summary, ...]
    sentence: str = ""


def pool_of(folder: SweepFolder, spec: SweepSpec, state: SweepState) -> SweepPool:
    """Return a sweep as a comparison reads it, from the state at hand.

    Args:
        folder: The sweep's folder.
        spec: Its space.
        state: Its state.

    Returns:
        The sweep, whose results depend on the completed configurations only, not on whether it still runs.
    """
    # Incomplete configurations keep no runs here, but are still counted.
    configs = {id: c if c.state == "complete" else dataclasses.replace(c, cells=()) for id, c in state.configs.items()}
    state = dataclasses.replace(state, configs=configs)
    return SweepPool(
        name=folder.name,
        sweeps=(LoadedSweep(folder, spec, folder.manifest, state, "finished"),),
        state=state,
        homes=dict.fromkeys(configs, folder.path),
        unfinished="",
        planned=None,
    )


def summaries(pool: SweepPool, *, by_samples: bool = True) -> Summaries:
    """Compute the summaries of a sweep's methods and of every pair of them.

    Args:
        pool: The sweep.
        by_samples: Read the validation logits for the sampling variance, as `compare` does; without it, intervals are wider.
    """
    state = pool.state
    finished = completed(state.history())
    algorithms = sorted({str(c.values.get("algorithm", "")) for c in finished}, key=_order)
    of_method = {a: tuple(c for c in finished if c.values.get("algorithm", "") == a) for a in algorithms}
    methods = [_of_method(pool, algorithm, side) for algorithm, side in of_method.items()]
    results = list(_compared(pool, algorithms, by_samples))
    pairs: list[tuple[Summary, pictures.Row]] = []
    colours = itertools.cycle(PAIR_COLOURS)
    for (a, b), result in results:
        pairs += _of_pair(state, a, b, result.scores, colours)
    if not methods:
        return Summaries(())
    first = _verdict(pool, by_samples) if results else None
    shown = [
        *(_of_verdict(first) if first is not None else ()),
        *_by_exit_pictures([summary for summary, _ in methods], [summary for summary, _ in pairs]),
        *_overview([row for _, row in methods], [row for _, row in pairs]),
    ]
    events = [summary for summary, _ in methods] + [summary for summary, _ in pairs]
    holder = len(methods) if pairs else 0  # the first pair's run, or that of the only method
    events[holder] = dataclasses.replace(events[holder], pictures=tuple(shown))
    return Summaries(tuple(events), first.sentence if first is not None else "")


def _verdict(pool: SweepPool, by_samples: bool) -> Verdict | None:
    """Return the verdict on the pair of methods that `compare` and `report` take, or on the first one with common runs."""
    curve_of = CellCurves(pool.sweeps[0].folder.path, lambda text: None)  # the feed has reported what is missing
    replayed: dict[CellKey, Tradeoff] = {}
    for key, record in pool.state.cells.items():
        if pool.state.configs[key[0]].state == "complete" and (curve := curve_of(record)) is not None:
            replayed[key] = curve
    objectives = at_speed_ups() if replayed else ()
    for a, b in (choose_sides([pool.sweeps[0].folder]), *itertools.combinations(pool.spec.algorithms, 2)):
        try:
            return compare_pool(pool, a, b, objectives=objectives, replayed=replayed, by_samples=by_samples).verdict
        except LeebertError:
            continue  # no common configurations
    return None


def _compared(
    pool: SweepPool, algorithms: Sequence[str], by_samples: bool
) -> Iterator[tuple[tuple[str, str], OnSweep]]:
    """Compare all pairs of methods that can be paired; their order names the MLflow runs."""
    for a, b in itertools.combinations(algorithms, 2):
        try:
            yield (a, b), compare_pool(pool, a, b, by_samples=by_samples)
        except LeebertError:
            continue  # no common configurations


def _of_method(pool: SweepPool, algorithm: str, side: History) -> tuple[Summary, pictures.Row]:
    """Summarise a method's completed configurations."""
    # (runs, exits): each run averaged over configurations, the unit of every interval here
    cells = cells_of(side)
    scores = exit_scores(side, cells)
    overall = pool.score_interval(scores.mean(axis=1).tolist())
    intervals = [pool.score_interval(column.tolist()) for column in scores.T]
    records = [[pool.state.cells[c.id, *cell]["weights"].get("ce") for cell in cells] for c in side]
    weights = []
    if all(run for runs in records for run in runs):
        by_run = np.mean(np.array(records), axis=0)
        weights = [corrected_t(column.tolist(), pool.test_train_ratio) for column in by_run.T]
    name = algorithm_label(algorithm)
    summary = Summary(
        name,
        metrics={"summary/configs": float(len(side)), **_percent("summary/score_pct", overall)},
        depth={
            "depth/layer": range(1, len(intervals) + 1),
            **_by_exit("summary/score", intervals),
            **_by_exit("summary/exit_pct", intervals, 100),
            **_by_exit("summary/omega_ce", weights),
        },
        algorithm=algorithm,
        note=f"{_counted(len(side), 'configuration')}, {_counted(len(scores), 'run')} each",
        time_ms=_newest(pool.state, {"algorithm": algorithm}),
    )
    return summary, _row(name, overall, colour(algorithm, 0), shown=overall.useful)


def _of_pair(
    state: SweepState, a: str, b: str, comparison: Comparison, colours: Iterator[str]
) -> Iterator[tuple[Summary, pictures.Row]]:
    """Summarise a pair of methods: all their pairs of configurations together, and each value of one-sided options."""
    ratio, warnings = comparison.test_train_ratio, [f"Warning: {w}" for w in comparison.warnings]
    lines: list[tuple[str, PairedComparison]] = []
    if len(comparison.lines) > 1:
        lines.append((f"{algorithm_label(a)} minus {algorithm_label(b)}", comparison.overall))
    for line in comparison.lines:
        lines.append((f"{_side(a, line.a_only)} minus {_side(b, line.b_only)}", line))
    for label, line in lines:
        tint = next(colours)
        summary = Summary(
            label,
            metrics={"paired/pairs": float(len(line.paired)), **_percent("paired/diff_pct", line.difference)},
            depth={
                "depth/layer": range(1, len(line.exits) + 1),
                **_by_exit("paired/diff", line.exits),
                **_by_exit("paired/exit_points", line.exits, 100),
            },
            colour=tint,
            note="\n\n".join([line_verdict(line, ratio), based_on(line), *warnings]),
            time_ms=_newest(state, {"algorithm": a, **line.a_only}, {"algorithm": b, **line.b_only}),
        )
        yield summary, _row(label, line.difference, tint, shown=line.difference.useful)


def _of_verdict(verdict: Verdict) -> list[Picture]:
    """Return the pictures of a verdict."""
    contents = json.dumps(verdict.as_dict(), sort_keys=True)
    shown = [Picture(names.VERDICT, contents, partial(pictures.verdict_picture, verdict))]
    if verdict.curves:
        shown.append(Picture(names.SPEED_UP_CURVES, contents, partial(pictures.curves_picture, verdict)))
    return shown


def _overview(methods: Sequence[pictures.Row], pairs: Sequence[pictures.Row]) -> list[Picture]:
    """Return pictures of all methods' scores and of all paired differences, with their intervals."""
    parts = [(names.SCORES, "Score of each method", methods, "validation score, mean over exits (%)", False)]
    if pairs:
        parts.append((names.DIFFERENCES, "Paired differences", pairs, "difference, mean over exits (points)", True))
    shown = []
    for key, title, rows, x, zero in parts:
        with_ends = any(row.low is not None for row in rows)
        words = f"{title}: mean{' and 95 % CI over runs' if with_ends else ' over runs, too few for an interval'}"
        contents = json.dumps([dataclasses.astuple(row) for row in rows])
        shown.append(Picture(key, contents, partial(pictures.rows_picture, words, rows, x, zero=zero)))
    return shown


def _by_exit_pictures(methods: Sequence[Summary], pairs: Sequence[Summary]) -> Iterator[Picture]:
    """Yield pictures of scores, loss weights and paired differences by exit, with their intervals."""
    parts = (
        (names.SCORE_BY_EXIT, "Validation score by exit", methods, "summary/exit_pct", "score (%)", None),
        (names.WEIGHTS_BY_EXIT, "Weight ω of each exit's cross-entropy", methods, "summary/omega_ce", "weight", 1.0),
        (
            names.DIFFERENCES_BY_EXIT,
            "Paired differences by exit",
            pairs,
            "paired/exit_points",
            "difference (points)",
            0.0,
        ),
    )
    for key, title, of, metric, y, level in parts:
        lines = [_exit_line(one, metric, i) for i, one in enumerate(one for one in of if one.depth.get(metric))]
        if not lines:
            continue
        with_ends = any(not math.isnan(end) for line in lines for end in line.low)
        kind = "simultaneous 95 % CI" if of is pairs else "95 % CI over runs"
        words = f"{title}: mean {f'and {kind}' if with_ends else 'over runs, too few for an interval'}"
        words += "; weights start at 1" if level == 1.0 else ""
        contents = json.dumps([dataclasses.astuple(line) for line in lines])
        yield Picture(key, contents, partial(pictures.exits_picture, words, lines, y, level=level))


def _exit_line(summary: Summary, metric: str, number: int) -> pictures.ExitLine:
    """Return a summary's values by exit, as its metrics hold them."""
    mean, low, high = (
        tuple(math.nan if value is None else round(value, 4) for value in summary.depth[f"{metric}{end}"])
        for end in ("", "_low", "_high")
    )
    tint = summary.colour or colour(summary.algorithm or "", number)
    return pictures.ExitLine(_with_symbols(summary.label), mean, low, high, tint)


def _with_symbols(label: str) -> str:
    """Return a label with the paper's symbols of options: labels identify stored summaries, pictures are read."""
    for option, symbol in SYMBOLS.items():
        label = label.replace(f"{option}=", f"{symbol}=")
    return label


def _row(name: str, interval: Interval, tint: str, *, shown: bool) -> pictures.Row:
    low, high = (round(100 * end, 3) if shown else None for end in (interval.low, interval.high))
    return pictures.Row(_with_symbols(name), round(100 * interval.mean, 3), low, high, tint)


def _order(algorithm: str) -> tuple[int, str]:
    """Order CLO first, then the other ways to weigh the loss terms; all other methods by name."""
    method = METHODS.find(algorithm)
    return Method.chart_order if method is None else method.chart_order, algorithm


def _newest(state: SweepState, *sides: Mapping[str, Any]) -> int:
    """Return the end (ms) of the newest run that a summary covers, so that a rebuilt summary has the same time."""
    about = [
        c.id for c in state.history() if any(side.items() <= {"algorithm": "", **c.values}.items() for side in sides)
    ]
    return int(1000 * max((cell["time"] for config in about for cell in state.cells_of.get(config, ())), default=0))


def _by_exit(name: str, intervals: Sequence[Interval], factor: float = 1.0) -> dict[str, list[float | None]]:
    """Return means and ends of intervals by exit; None for unknown ends, nothing without intervals."""
    if not intervals:
        return {}
    return {
        name: [factor * i.mean for i in intervals],
        f"{name}_low": [factor * i.low if i.useful else None for i in intervals],
        f"{name}_high": [factor * i.high if i.useful else None for i in intervals],
    }


def _percent(name: str, interval: Interval) -> dict[str, float]:
    """Return an interval of fractions in per cent, without unknown ends."""
    numbers = {name: interval.mean}
    if interval.useful:
        numbers |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {key: round(100 * value, 3) for key, value in numbers.items()}


def _side(algorithm: str, only: Mapping[str, Any]) -> str:
    """Return ``CLO-v2 C=2``: a method and the options that it alone has in a comparison."""
    options = (f"{'C' if option == 'cycle_length' else option}={value}" for option, value in only.items())
    return " ".join([algorithm_label(algorithm), *options])


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
