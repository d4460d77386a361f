"""The figures of reports: their numbers, from a history, a ledger and validation logits, and their drawing.

Drawing functions take plain numbers, open no window and change no global state.
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
from tune.analysis.compare import PairedComparison
from tune.analysis.labels import algorithm_colour
from tune.store.held_out import cell_logits
from tune.store.history import Configuration, History
from tune.store.ledger import LedgerRecord, SweepState
from tune.store.ranking import completed, exit_scores

#: For sides that are not methods, or methods without a colour.
PALETTE = ("#2272b4", "#de7921", "#00855f", "#8c4799", "#8c8c8c")

#: Markers of curves that may overlap.
MARKERS = "os^Dv"

#: A curve: x, mean, lowest and highest value (the mean again if there is no spread), (n,) arrays each.
Band = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def colour(name: str, position: int) -> str:
    """Return the colour of a method; for another name, that of its position in the palette."""
    return algorithm_colour(name) or PALETTE[position % len(PALETTE)]


def bands(panels: Mapping[str, Mapping[str, Band]], x: str, y: str, colours: Sequence[str]) -> Figure:
    """Draw curves with their range, one panel each; every panel uses the same colours, in the order of its curves.

    Args:
        panels: Title → name → (x, mean, lowest, highest) of each curve.
        x: Label of the x-axes.
        y: Label of the y-axes.
        colours: A colour for each curve of a panel.

    Returns:
        The figure.
    """
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    width = 6.4 if columns == 1 else 4.4 * columns
    figure = Figure(figsize=(width, 3.8 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes, (title, curves) in zip(grid, panels.items(), strict=False):
        for (name, (at, mean, low, high)), drawn, marker in zip(
            curves.items(), colours, islice(cycle(MARKERS), len(curves)), strict=True
        ):
            # Hollow markers, so that overlapping curves stay visible.
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
    """Draw score and mean exit layer against patience (the paper's figures 3 and 4).

    Args:
        curves: By name, (patience, mean exit layer, score in per cent) of each point.
        colours: One per curve.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    by_score, by_layers = figure.subplots(1, 2)
    for (name, points), drawn in zip(curves.items(), colours, strict=True):
        p, layers, score = zip(*points, strict=True)
        by_score.plot(p, score, marker="o", ms=4, color=drawn, label=name)
        by_layers.plot(p, layers, marker="o", ms=4, color=drawn, label=name)
    by_score.set(xlabel="patience", ylabel="validation score (%)")
    by_layers.set(xlabel="patience", ylabel="mean exit layer")
    for axes in (by_score, by_layers):
        axes.set_xticks([point[0] for point in next(iter(curves.values()))])
        axes.grid(alpha=0.25)
    by_score.legend()
    return figure


def heat_maps(maps: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draw (exits, epochs) maps of learned weights: a row per side, a column per term, with one colour scale per term."""
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
    """Draw learning curves: (method, colour, score per epoch in per cent, whether highlighted) per configuration."""
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    named: set[str] = set()
    for method, drawn, scores, highlighted in curves:
        label = None if method in named else method
        named.add(method)
        style = {"lw": 2.5, "alpha": 1.0, "zorder": 3} if highlighted else {"lw": 1.0, "alpha": 0.5}
        axes.plot(range(1, len(scores) + 1), scores, marker=".", color=drawn, label=label, **style)  # type: ignore[arg-type]
    axes.set(xlabel="epoch", ylabel="validation score, mean over exits (%)")
    axes.set_xticks(range(1, max(len(scores) for _, _, scores, _ in curves) + 1))
    axes.grid(alpha=0.25)
    axes.legend()
    return figure


def shares(groups: Mapping[str, Mapping[str, tuple[float, float, float, float]]]) -> Figure:
    """Draw bars between 0 and 1, one panel per group: (share, its lowest, its highest, a second measure) by option."""
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
    """Draw score against mean exit layer, and the Pareto front.

    Args:
        curves: (method, colour, mean exit layers, scores in per cent) of each configuration.
        best: (mean exit layer, score in per cent) of each point of the front.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.subplots()
    named: set[str] = set()
    for method, drawn, layers, scores in curves:
        axes.plot(layers, scores, color=drawn, alpha=0.35, lw=1, label=None if method in named else method)
        named.add(method)
    axes.step(*zip(*best, strict=True), where="post", color="#1c1c1c", lw=1.6, marker="o", ms=4, label="Pareto front")
    axes.set(xlabel="mean exit layer", ylabel="validation score (%)")
    axes.grid(alpha=0.25)
    axes.legend()
    return figure


# The numbers.


#: The names of ω's terms in the paper.
TERMS = {"ce": "cross-entropy of the exit", "kd": "terms in which the exit is a student"}


def band_of(scores: np.ndarray) -> Band:
    """Return each exit's mean, lowest and highest value over runs, in per cent, from (runs, exits) fractions."""
    points = 100 * scores
    return np.arange(1, points.shape[1] + 1), points.mean(axis=0), points.min(axis=0), points.max(axis=0)


def depth_bands(line: PairedComparison, history: History) -> dict[str, Band]:
    """Return A's and B's score by exit over the runs that a comparison counts; empty without recorded exits."""
    by_id = {c.id: c for c in history}
    sides = [exit_scores([by_id[pair[i]] for pair in line.paired], line.cells) for i in (0, 1)]
    return {name: band_of(s) for name, s in zip((line.a, line.b), sides, strict=True) if s.size}


def patience_points(folder: Path, state: SweepState, c: Configuration, metric: str) -> list[tuple[int, float, float]]:
    """Replay the patience criterion at every threshold.

    Args:
        folder: The sweep's folder.
        state: Its state.
        c: A completed configuration.
        metric: Name of the task's metric.

    Returns:
        (patience, mean exit layer, score in per cent), means over runs, from patience 1 on.

    Raises:
        SweepError: Logits are missing or damaged.
        ConfigError: The model has a single exit.
    """
    cells = [cell_logits(folder, state.cells[c.id, k.seed, k.fold])[0] for k in c.cells]
    if len(cells[0].logits) < 2:
        raise ConfigError("a model with one exit has no patience")
    curves = [tradeoff(cell, DEFAULT, metric=metric) for cell in cells]
    layers = np.mean([curve.layers for curve in curves], axis=0)
    scores = 100 * np.mean([curve.scores for curve in curves], axis=0)
    patiences = curves[0].thresholds.astype(int)
    return list(zip(patiences.tolist(), layers.tolist(), scores.tolist(), strict=True))


def omega_maps(state: SweepState, c: Configuration) -> dict[str, np.ndarray]:
    """Return (exits, epochs) weights of each term that is recorded for every epoch; see :func:`by_epoch`."""
    records = [state.epochs[c.id, k.seed, k.fold] for k in c.cells]
    weights = [r["weights"] for epochs in records for r in epochs.values()]
    terms = [t for t in TERMS if all(t in w for w in weights)]
    return {t: np.stack(by_epoch(records, partial(_weights, term=t))).T for t in terms}


def _weights(record: LedgerRecord, term: str) -> list[float]:
    weights: list[float] = record["weights"][term]
    return weights


def learning_curves(state: SweepState) -> Sequence[tuple[str, int, Configuration, list[float]]]:
    """Return method, its index, configuration and score in per cent by epoch, for every completed configuration."""
    finished = completed(state.history())
    algorithms = sorted({str(c.values["algorithm"]) for c in finished})
    curves = []
    for c in finished:
        mean = by_epoch([state.epochs[c.id, k.seed, k.fold] for k in c.cells], lambda r: r["score"])
        name = str(c.values["algorithm"])
        curves.append((name, algorithms.index(name), c, [100 * float(v) for v in mean]))
    return curves


def by_epoch(cells: Sequence[Mapping[int, LedgerRecord]], pick: Callable[[LedgerRecord], Any]) -> list[Any]:
    """Return the mean over runs of a quantity of each epoch, up to the end of the shortest run: always the same runs."""
    epochs = min(max(records) for records in cells) + 1
    return [np.mean([pick(records[e]) for records in cells], axis=0) for e in range(epochs)]
