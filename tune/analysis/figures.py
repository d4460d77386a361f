"""The figures of reports: their numbers, from a history, a ledger and held-out logits, and the drawing of these.

What draws takes plain numbers, opens no window and has no global state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from leebert.errors import ConfigError
from leebert.exits import DEFAULT
from leebert.tradeoff import tradeoff
from tune.analysis.compare import Line
from tune.analysis.labels import algorithm_colour
from tune.store.held_out import cell_logits
from tune.store.history import Configuration, History
from tune.store.ledger import Record, State
from tune.store.ranking import complete, exit_scores

#: For sides that are no algorithm with a colour of its own.
PALETTE = ("#2272b4", "#de7921", "#00855f", "#8c4799", "#8c8c8c")

#: Of curves that may lie upon each other.
MARKERS = "os^Dv"

#: A curve: x, y, and how far it spreads below and above (y again where there is no spread).
Band = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def colour(name: str, position: int) -> str:
    """The colour of an algorithm, or of what stands at this position."""
    return algorithm_colour(name) or PALETTE[position % len(PALETTE)]


def bands(panels: Mapping[str, Mapping[str, Band]], x: str, y: str, colours: Sequence[str]) -> Figure:
    """Curves with what they spread over, by panel; the same colours in each panel, in the order of its curves."""
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    width = 6.4 if columns == 1 else 4.4 * columns
    figure = Figure(figsize=(width, 3.8 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes, (title, curves) in zip(grid, panels.items(), strict=False):
        for (name, (at, mean, low, high)), drawn, marker in zip(
            curves.items(), colours, islice(cycle(MARKERS), len(curves)), strict=True
        ):
            # Hollow, so that one curve upon another hides none.
            axes.plot(at, mean, marker=marker, ms=6, mfc="none", color=drawn, label=name)
            axes.fill_between(at, low, high, color=drawn, alpha=0.15, lw=0)
        axes.set(xlabel=x, ylabel=y, title=title)
        axes.set_xticks(next(iter(curves.values()))[0])
        axes.grid(alpha=0.25)
        axes.legend()
    for axes in grid[len(panels) :]:
        axes.remove()
    return figure


def patience(curves: Mapping[str, Sequence[tuple[int, float, float]]], colours: Sequence[str]) -> Figure:
    """Score and layers against patience: (patience, layers, score in per cent) per curve (the paper's figures 3 and 4)."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, points), drawn in zip(curves.items(), colours, strict=True):
        p, layers, score = zip(*points, strict=True)
        left.plot(p, score, marker="o", ms=4, color=drawn, label=name)
        right.plot(p, layers, marker="o", ms=4, color=drawn, label=name)
    left.set(xlabel="patience", ylabel="held-out score, per cent")
    right.set(xlabel="patience", ylabel="mean layers executed")
    for axes in (left, right):
        axes.set_xticks([point[0] for point in next(iter(curves.values()))])
        axes.grid(alpha=0.25)
    left.legend()
    return figure


def heat_maps(maps: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """(exits, epochs) maps of learned weights: a row per side, a column per term, with one scale of colours per term."""
    terms = list(dict.fromkeys(term for side in maps.values() for term in side))
    figure = Figure(figsize=(5.0 * len(terms), 2.9 * len(maps)), layout="constrained")
    grid = figure.subplots(len(maps), len(terms), squeeze=False)
    for term, column in zip(terms, grid.T, strict=True):
        values = [side[term] for side in maps.values() if term in side]
        low, high = min(v.min() for v in values), max(v.max() for v in values)
        for axes, (name, side) in zip(column, maps.items(), strict=True):
            if term not in side:
                axes.remove()
                continue
            image = axes.imshow(side[term], aspect="auto", origin="lower", interpolation="nearest", vmin=low, vmax=high)
            axes.set(title=f"{name}: {term}", xlabel="epoch", ylabel="exit")
            axes.set_xticks(range(side[term].shape[1]), range(1, side[term].shape[1] + 1))
            axes.set_yticks(range(side[term].shape[0]), range(1, side[term].shape[0] + 1))
            figure.colorbar(image, ax=axes)
    return figure


def learning(curves: Sequence[tuple[str, str, Sequence[float], bool]]) -> Figure:
    """(algorithm, colour, score per epoch in per cent, whether it stands out) per configuration."""
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    named: set[str] = set()
    for algorithm, drawn, scores, first in curves:
        label = None if algorithm in named else algorithm
        named.add(algorithm)
        style = {"lw": 2.5, "alpha": 1.0, "zorder": 3} if first else {"lw": 1.0, "alpha": 0.5}
        axes.plot(range(1, len(scores) + 1), scores, marker=".", color=drawn, label=label, **style)  # type: ignore[arg-type]
    axes.set(xlabel="epoch", ylabel="held-out score, mean over exits, per cent")
    axes.set_xticks(range(1, max(len(scores) for _, _, scores, _ in curves) + 1))
    axes.grid(alpha=0.25)
    axes.legend()
    return figure


def shares(groups: Mapping[str, Mapping[str, tuple[float, float, float, float]]]) -> Figure:
    """Bars between 0 and 1, one panel per group: (share, its lowest, its highest, a second measure) by option."""
    height = 1.0 + 0.45 * max(len(group) for group in groups.values())
    figure = Figure(figsize=(min(4.4 * len(groups), 13), height), layout="constrained")
    grid = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (title, group) in zip(grid, groups.items(), strict=True):
        ordered = sorted(group.items(), key=lambda item: item[1][0])
        at = np.arange(len(ordered))
        share, low, high, second = (np.array(column) for column in zip(*(v for _, v in ordered), strict=True))
        spread = np.maximum(0, [share - low, high - share])
        axes.barh(at + 0.2, share, 0.36, xerr=spread, color=PALETTE[0], capsize=2, label="fANOVA")
        axes.barh(at - 0.2, second, 0.36, color=PALETTE[1], label="PED-ANOVA")
        axes.set_yticks(at, [name for name, _ in ordered])
        axes.set(title=title, xlim=(0, 1))
    grid[0].legend(fontsize=8)
    return figure


def front(curves: Sequence[tuple[str, str, np.ndarray, np.ndarray]], best: Sequence[tuple[float, float]]) -> Figure:
    """(algorithm, colour, layers, score in per cent) per configuration, and the front over them."""
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.subplots()
    named: set[str] = set()
    for algorithm, drawn, layers, scores in curves:
        axes.plot(layers, scores, color=drawn, alpha=0.35, lw=1, label=None if algorithm in named else algorithm)
        named.add(algorithm)
    axes.step(*zip(*best, strict=True), where="post", color="#1c1c1c", lw=1.6, marker="o", ms=4, label="front")
    axes.set(xlabel="mean layers executed", ylabel="held-out score, per cent")
    axes.grid(alpha=0.25)
    axes.legend()
    return figure


# The numbers.


#: What the terms of ω are called in the paper.
TERMS = {"ce": "cross-entropy of the exit", "kd": "terms in which the exit is a student"}


def band_of(scores: np.ndarray) -> Band:
    """Of (cells, exits): each exit's mean, lowest and highest over cells, in per cent."""
    points = 100 * scores
    return np.arange(1, points.shape[1] + 1), points.mean(axis=0), points.min(axis=0), points.max(axis=0)


def depth_bands(line: Line, history: History) -> dict[str, Band]:
    """A's and B's score by exit over the runs that a line counts; empty where the exits weren't recorded."""
    known = {c.id: c for c in history}
    sides = [exit_scores([known[pair[i]] for pair in line.paired], line.cells) for i in (0, 1)]
    return {name: band_of(s) for name, s in zip((line.a, line.b), sides, strict=True) if s.size}


def patience_points(folder: Path, state: State, c: Configuration, metric: str) -> list[tuple[int, float, float]]:
    """(patience, mean layers, mean score in per cent) over a configuration's cells.

    Raises what :func:`cell_logits` does, and ConfigError for a model with one exit.
    """
    cells = [cell_logits(folder, state.cells[c.id, k.seed, k.fold])[0] for k in c.cells]
    if len(cells[0].logits) < 2:
        raise ConfigError("a model with one exit has no patience")
    curves = [tradeoff(cell, DEFAULT, metric=metric) for cell in cells]
    layers = np.mean([curve.layers for curve in curves], axis=0)
    scores = 100 * np.mean([curve.scores for curve in curves], axis=0)
    patiences = curves[0].thresholds.astype(int)
    return list(zip(patiences.tolist(), layers.tolist(), scores.tolist(), strict=True))


def omega_maps(state: State, c: Configuration) -> dict[str, np.ndarray]:
    """(exits, epochs) of each term that is recorded for every epoch; see :func:`by_epoch`."""
    records = [state.epochs[c.id, k.seed, k.fold] for k in c.cells]
    weights = [r["weights"] for known in records for r in known.values()]
    terms = [t for t in TERMS if all(t in w for w in weights)]
    return {t: np.stack(by_epoch(records, partial(_weights, term=t))).T for t in terms}


def _weights(record: Record, term: str) -> list[float]:
    weights: list[float] = record["weights"][term]
    return weights


def learning_curves(state: State) -> Sequence[tuple[str, int, Configuration, list[float]]]:
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
