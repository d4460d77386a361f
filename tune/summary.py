"""Summaries over many configurations, for MLflow: per algorithm, and paired differences; these carry the truth at any size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from leebert.errors import LeebertError
from tune.compare import compare
from tune.ledger import State
from tune.names import PAIR_COLOURS, algorithm_label
from tune.stats import Interval, corrected_t, fold_ratio
from tune.tracking_events import Summary


def summaries(state: State, folds: int, test_train_ratio: float | None) -> Iterator[Summary]:
    """One per algorithm, and one per pair of algorithms whose configurations can be paired.

    The ratio of held-out to training rows is 1/(folds - 1) unless given, as in `tune.compare`.
    """
    ratio = fold_ratio(folds) if test_train_ratio is None else test_train_ratio
    history = [c for c in state.history() if c.state == "complete"]
    # One that was completed before the sweep got more seeds has fewer cells: no mean with the others then.
    most = max((len(c.scores) for c in history), default=0)
    history = [c for c in history if len(c.scores) == most == len(c.cells)]
    algorithms = sorted({c.values.get("algorithm", "") for c in history})
    for algorithm in algorithms:
        mine = [c for c in history if c.values.get("algorithm", "") == algorithm]
        # (cells, exits): each cell averaged over configurations, the unit of every interval here
        scores = np.mean([[cell.best.exits for cell in c.cells if cell.best] for c in mine], axis=0)
        overall = corrected_t(scores.mean(axis=1).tolist(), ratio)
        intervals = [corrected_t(column.tolist(), ratio) for column in scores.T]
        yield Summary(
            algorithm_label(algorithm),
            metrics={"summary/configs": float(len(mine)), **_percent("summary/score_pct", overall)},
            depth={
                "depth/layer": range(1, len(intervals) + 1),
                "summary/score": [i.mean for i in intervals],
                "summary/score_low": [_known(i.low) for i in intervals],
                "summary/score_high": [_known(i.high) for i in intervals],
            },
            algorithm=algorithm,
            note=f"{_counted(len(mine), 'configuration')}, each on {_counted(len(scores), 'cell')}",
            time_ms=_newest(state, {"algorithm": algorithm}),
        )
    colours = itertools.cycle(PAIR_COLOURS)
    for a, b in itertools.permutations(algorithms, 2):
        if not (a.startswith("clo") and not b.startswith("clo")):
            continue
        try:
            comparison = compare(state.history(), a, b, folds=folds, test_train_ratio=ratio)
        except LeebertError:
            continue  # no common configurations: nothing to say
        for line in comparison.lines:
            yield Summary(
                f"{_side(a, line.a_only)} minus {_side(b, line.b_only)}",
                metrics={"paired/pairs": float(line.pairs), **_percent("paired/diff_pct", line.difference)},
                depth={
                    "depth/layer": range(1, len(line.exits) + 1),
                    "paired/diff": [i.mean for i in line.exits],
                    "paired/diff_low": [_known(i.low) for i in line.exits],
                    "paired/diff_high": [_known(i.high) for i in line.exits],
                },
                colour=next(colours),
                note=line.verdict,
                time_ms=_newest(state, {"algorithm": a, **line.a_only}, {"algorithm": b, **line.b_only}),
            )


def _newest(state: State, *sides: Mapping[str, Any]) -> int:
    """When the newest cell was done (ms) of all that a summary is about: made again later, it is the same."""
    about = [
        c.id for c in state.history() if any(side.items() <= {"algorithm": "", **c.values}.items() for side in sides)
    ]
    return int(1000 * max((cell["time"] for config in about for cell in state.cells_of.get(config, ())), default=0))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _percent(name: str, interval: Interval) -> dict[str, float]:
    """An interval of fractions in per cent, without the ends that aren't known."""
    numbers = {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {key: round(100 * value, 3) for key, value in numbers.items() if not math.isnan(value)}


def _side(algorithm: str, only: Mapping[str, Any]) -> str:
    """``CLO-v2 C=2``: an algorithm and the options that it alone has in a comparison."""
    options = (f"{'C' if option == 'cycle_length' else option}={value}" for option, value in only.items())
    return " ".join([algorithm_label(algorithm), *options])


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
