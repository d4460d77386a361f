"""Summaries over many configurations, for MLflow: per algorithm, and paired differences; these carry the truth at any size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from leebert.errors import LeebertError
from tune.compare import compare
from tune.ledger import State
from tune.names import algorithm_label
from tune.stats import corrected_t, fold_ratio
from tune.tracking_events import Summary


def summaries(state: State, folds: int, test_train_ratio: float | None) -> Iterator[Summary]:
    """One per algorithm, and one per pair of algorithms whose configurations can be paired.

    The ratio of held-out to training rows is 1/(folds - 1) unless given, as in `tune.compare`.
    """
    ratio = fold_ratio(folds) if test_train_ratio is None else test_train_ratio
    history = [c for c in state.history() if c.state == "complete"]
    # Of the newest cell, so that a summary made again later is the same.
    time_ms = int(1000 * max((cell["time"] for cell in state.cells.values()), default=0))
    algorithms = sorted({c.values.get("algorithm", "") for c in history})
    for algorithm in algorithms:
        mine = [c for c in history if c.values.get("algorithm", "") == algorithm]
        # (cells, exits): each cell averaged over configurations, the unit of every interval here
        scores = np.mean([[cell.best.exits for cell in c.cells if cell.best] for c in mine], axis=0)
        intervals = [corrected_t(column.tolist(), ratio) for column in scores.T]
        yield Summary(
            algorithm_label(algorithm),
            metrics={"summary/configs": float(len(mine))},
            depth={
                "depth/layer": range(1, len(intervals) + 1),
                "summary/score": [i.mean for i in intervals],
                "summary/score_low": [_known(i.low) for i in intervals],
                "summary/score_high": [_known(i.high) for i in intervals],
            },
            algorithm=algorithm,
            time_ms=time_ms,
        )
    for a, b in itertools.permutations(algorithms, 2):
        if not (a.startswith("clo") and not b.startswith("clo")):
            continue
        try:
            comparison = compare(state.history(), a, b, folds=folds, test_train_ratio=ratio)
        except LeebertError:
            continue  # no common configurations: nothing to say
        for line in comparison.lines:
            only = " ".join(f"{k}={v}" for k, v in {**line.a_only, **line.b_only}.items())
            yield Summary(
                f"{algorithm_label(a)} minus {algorithm_label(b)} {only}".strip(),
                metrics={"paired/pairs": float(line.pairs)},
                depth={
                    "depth/layer": range(1, len(line.exits) + 1),
                    "paired/diff": [i.mean for i in line.exits],
                    "paired/diff_low": [_known(i.low) for i in line.exits],
                    "paired/diff_high": [_known(i.high) for i in line.exits],
                },
                note=line.verdict,
                time_ms=time_ms,
            )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
