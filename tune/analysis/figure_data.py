"""The numbers behind the figures of pages: plain values from a history, a ledger, and held-out logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from leebert.errors import ConfigError
from leebert.tradeoff import tradeoff
from tune.analysis.compare import Line
from tune.analysis.figures import Band
from tune.store.held_out import cell_logits
from tune.store.history import Configuration, History
from tune.store.ledger import Record, State
from tune.store.ranking import complete, exit_scores

#: What the terms of ω are called in the paper.
TERMS = {"ce": "cross-entropy of the exit", "kd": "terms in which the exit is a student"}


def band(scores: np.ndarray) -> Band:
    """Of (cells, exits): each exit's mean, lowest and highest over cells, in per cent."""
    points = 100 * scores
    return np.arange(1, points.shape[1] + 1), points.mean(axis=0), points.min(axis=0), points.max(axis=0)


def depth(line: Line, history: History) -> dict[str, Band]:
    """A's and B's score by exit over the runs that a line counts; empty where the exits weren't recorded."""
    known = {c.id: c for c in history}
    sides = [exit_scores([known[pair[i]] for pair in line.paired], line.cells) for i in (0, 1)]
    return {name: band(s) for name, s in zip((line.a, line.b), sides, strict=True) if s.size}


def patience(folder: Path, state: State, c: Configuration, metric: str) -> list[tuple[int, float, float]]:
    """(patience, mean layers, mean score in per cent) over a configuration's cells.

    Raises what :func:`cell_logits` does, and ConfigError for a model with one exit.
    """
    cells = [cell_logits(folder, state.cells[c.id, k.seed, k.fold])[0] for k in c.cells]
    if len(cells[0].logits) < 2:
        raise ConfigError("a model with one exit has no patience")
    curves = [tradeoff(cell, "patience", metric=metric) for cell in cells]
    layers = np.mean([curve.layers for curve in curves], axis=0)
    scores = 100 * np.mean([curve.scores for curve in curves], axis=0)
    patiences = curves[0].thresholds.astype(int)
    return list(zip(patiences.tolist(), layers.tolist(), scores.tolist(), strict=True))


def omega(state: State, c: Configuration) -> dict[str, np.ndarray]:
    """(exits, epochs) of each term that is recorded for every epoch; see :func:`by_epoch`."""
    records = [state.epochs[c.id, k.seed, k.fold] for k in c.cells]
    weights = [r["weights"] for known in records for r in known.values()]
    terms = [t for t in TERMS if all(t in w for w in weights)]
    return {t: np.stack(by_epoch(records, partial(_weights, term=t))).T for t in terms}


def _weights(record: Record, term: str) -> list[float]:
    weights: list[float] = record["weights"][term]
    return weights


def learning(state: State) -> Sequence[tuple[str, int, Configuration, list[float]]]:
    """Algorithm, its place, configuration, and its score in per cent by epoch, of every complete configuration."""
    finished = complete(state.history())
    algorithms = sorted({str(c.values["algorithm"]) for c in finished})
    told = []
    for c in finished:
        mean = by_epoch([state.epochs[c.id, k.seed, k.fold] for k in c.cells], lambda r: r["score"])
        name = str(c.values["algorithm"])
        told.append((name, algorithms.index(name), c, [100 * float(v) for v in mean]))
    return told


def by_epoch(cells: Sequence[Mapping[int, Record]], pick: Callable[[Record], Any]) -> list[Any]:
    """The mean over cells of something of each epoch, up to where the first cell ends: always over the same cells."""
    epochs = min(max(known) for known in cells) + 1
    return [np.mean([pick(known[e]) for known in cells], axis=0) for e in range(epochs)]
