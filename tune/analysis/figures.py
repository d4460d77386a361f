"""The numbers of figures, from a history, a ledger and validation logits; and curves with bands, drawn by matplotlib.

`tune.analysis.charts` draws those of HTML pages.
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
from tune.analysis.stats import USEFUL, Interval
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


# The numbers.


#: The names of ω's terms.
TERMS = {"ce": "cross-entropy", "kd": "distillation"}

#: Teacher set → number of teachers of each of M exits (:data:`leebert.losses.TEACHERS` without torch).
TEACHERS: Mapping[str, Callable[[int], np.ndarray]] = {
    "lae": lambda exits: np.full(exits, exits - 1),
    "lle": lambda exits: np.arange(exits)[::-1],
    "last": lambda exits: np.append(np.ones(exits - 1, int), 0),
    "none": lambda exits: np.zeros(exits, int),
}


def band_of(scores: np.ndarray, interval: Callable[[Sequence[float]], Interval]) -> Band:
    """Return each exit's mean and interval over runs, in per cent; the mean for its ends with too few runs for an interval.

    Args:
        scores: (runs, exits) scores, fractions.
        interval: Computes the interval of (runs,) scores.
    """
    intervals = [interval(column.tolist()) for column in scores.T]
    ends = [(i.mean, i.low, i.high) if i.useful else (i.mean, i.mean, i.mean) for i in intervals]
    mean, low, high = 100 * np.array(ends).reshape(-1, 3).T
    return np.arange(1, len(mean) + 1), mean, low, high


def band_in_words(runs: int) -> str:
    """Return what the bands of :func:`band_of` are."""
    return "mean and 95 % CI over runs" if runs >= USEFUL else "mean over runs, too few for an interval"


def depth_bands(
    line: PairedComparison, history: History, interval: Callable[[Sequence[float]], Interval]
) -> dict[str, Band]:
    """Return A's and B's score by exit over the runs that a comparison counts; empty without recorded exits.

    Args:
        line: The comparison.
        history: The sweep's configurations.
        interval: Computes the interval of (runs,) scores.
    """
    by_id = {c.id: c for c in history}
    sides = [exit_scores([by_id[pair[i]] for pair in line.paired], line.cells) for i in (0, 1)]
    return {name: band_of(s, interval) for name, s in zip((line.a, line.b), sides, strict=True) if s.size}


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


def omega_maps(state: SweepState, c: Configuration, teachers: str) -> dict[str, np.ndarray]:
    """Return the mean weight of each kind of term that is recorded for every epoch; see :func:`by_epoch`.

    Args:
        state: The sweep's state.
        c: A completed configuration.
        teachers: Its teacher set, a key of :data:`TEACHERS`.

    Returns:
        (exits, epochs) weights by kind. Every weight starts at 1; an exit without terms of a kind has 1 throughout.
    """
    records = [state.epochs[c.id, k.seed, k.fold] for k in c.cells]
    weights = [r["weights"] for epochs in records for r in epochs.values()]
    maps = {t: np.stack(by_epoch(records, partial(_weights, term=t))).T for t in TERMS if all(t in w for w in weights)}
    if "kd" in maps:
        sums, counts = maps.pop("kd"), TEACHERS[teachers](len(maps["ce"]))[:, None]
        if counts.any():
            maps["kd"] = np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)
    return maps


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
