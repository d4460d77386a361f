"""Summaries over all configurations, for MLflow: per method, and paired differences; correct at any number of runs."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from leebert.errors import LeebertError
from leebert.methods import METHODS, Method
from tune.analysis.compare import compare, line_verdict
from tune.analysis.compare_text import based_on
from tune.analysis.labels import PAIR_COLOURS, algorithm_label
from tune.analysis.stats import Interval, corrected_t, fold_ratio
from tune.store.ledger import SweepState
from tune.store.ranking import cells_of, completed, exit_scores
from tune.tracking.events import Summary


def summaries(state: SweepState, folds: int, test_train_ratio: float | None) -> Iterator[Summary]:
    """Compute a summary per method, and one per pair of methods whose configurations can be paired.

    Args:
        state: The sweep's state.
        folds: The number of folds.
        test_train_ratio: Validation samples per training sample; 1/(folds - 1) unless given.
    """
    ratio = fold_ratio(folds) if test_train_ratio is None else test_train_ratio
    finished = completed(state.history())
    algorithms = sorted({str(c.values.get("algorithm", "")) for c in finished}, key=_order)
    for algorithm in algorithms:
        of_method = tuple(c for c in finished if c.values.get("algorithm", "") == algorithm)
        # (runs, exits): each run averaged over configurations, the unit of every interval here
        scores = exit_scores(of_method, cells_of(of_method))
        overall = corrected_t(scores.mean(axis=1).tolist(), ratio)
        intervals = [corrected_t(column.tolist(), ratio) for column in scores.T]
        yield Summary(
            algorithm_label(algorithm),
            metrics={"summary/configs": float(len(of_method)), **_percent("summary/score_pct", overall)},
            depth={
                "depth/layer": range(1, len(intervals) + 1),
                "summary/score": [i.mean for i in intervals],
                "summary/score_low": [_or_none(i.low) for i in intervals],
                "summary/score_high": [_or_none(i.high) for i in intervals],
            },
            algorithm=algorithm,
            note=f"{_counted(len(of_method), 'configuration')}, {_counted(len(scores), 'run')} each",
            time_ms=_newest(state, {"algorithm": algorithm}),
        )
    colours = itertools.cycle(PAIR_COLOURS)
    # Incomplete configurations keep no runs here, but are still counted.
    ids = {c.id for c in finished}
    history = tuple(c if c.id in ids else dataclasses.replace(c, cells=()) for c in state.history())
    for a, b in itertools.combinations(algorithms, 2):
        try:
            comparison = compare(history, a, b, folds=folds, test_train_ratio=ratio)
        except LeebertError:
            continue  # no common configurations
        for line in comparison.lines:
            yield Summary(
                f"{_side(a, line.a_only)} minus {_side(b, line.b_only)}",
                metrics={"paired/pairs": float(len(line.paired)), **_percent("paired/diff_pct", line.difference)},
                depth={
                    "depth/layer": range(1, len(line.exits) + 1),
                    "paired/diff": [i.mean for i in line.exits],
                    "paired/diff_low": [_or_none(i.low) for i in line.exits],
                    "paired/diff_high": [_or_none(i.high) for i in line.exits],
                },
                colour=next(colours),
                note="\n\n".join(
                    [line_verdict(line, ratio), based_on(line), *(f"Warning: {w}" for w in comparison.warnings)]
                ),
                time_ms=_newest(state, {"algorithm": a, **line.a_only}, {"algorithm": b, **line.b_only}),
            )


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


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _percent(name: str, interval: Interval) -> dict[str, float]:
    """Return an interval of fractions in per cent, without unknown ends."""
    numbers = {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {key: round(100 * value, 3) for key, value in numbers.items() if not math.isnan(value)}


def _side(algorithm: str, only: Mapping[str, Any]) -> str:
    """Return ``CLO-v2 C=2``: a method and the options that it alone has in a comparison."""
    options = (f"{'C' if option == 'cycle_length' else option}={value}" for option, value in only.items())
    return " ".join([algorithm_label(algorithm), *options])


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
