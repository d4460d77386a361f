"""The paper's figures 2 to 4 from results: mean layers or score against patience, with standard errors over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure as Drawn

from leebert.exits import DEFAULT
from tune.analysis.figures import Band, bands, colour
from tune.reproduce.outcomes import Cell
from tune.reproduce.paper import Figure, Row
from tune.reproduce.results import Results


@dataclasses.dataclass(frozen=True)
class Curve:
    """A method over patience, with a standard error to both sides, of which one seed has none."""

    row: Row
    seeds: int
    band: Band

    @property
    def label(self) -> str:
        """The method, and how many seeds its curve is the mean of: curves of one figure may differ in that."""
        return f"{self.row.title} ({self.seeds} seed{'s' if self.seeds > 1 else ''})"


def curves(figure: Figure, rows: Sequence[Row], results: Results) -> list[Curve]:
    """The curve of each method that has cells with several exits."""
    found = []
    for row in rows:
        cells = [cell for cell in results.of(row.method, row.keep).values() if len(cell.exits) > 1]
        if cells:
            values = np.array([_by_patience(figure, cell) for cell in cells])  # (seeds, M - 1)
            mean = values.mean(axis=0)
            error = values.std(axis=0, ddof=1) / np.sqrt(len(cells)) if len(cells) > 1 else np.zeros_like(mean)
            band = np.arange(1, values.shape[1] + 1), mean, mean - error, mean + error
            found.append(Curve(row, len(cells), band))
    return found


def draw(figure: Figure, title: str, split: str, found: Sequence[Curve]) -> Drawn:
    """The figure of :func:`curves`, of which there must be one at least; `split` names the evaluated rows."""
    colours = [colour(curve.row.method, i) for i, curve in enumerate(found)]
    y = "mean layers executed" if figure.shows == "layers" else f"score on {split}, per cent"
    if any(curve.seeds > 1 for curve in found):
        y += " (± standard error)"
    return bands({title: {curve.label: curve.band for curve in found}}, DEFAULT, y, colours)


def _by_patience(figure: Figure, cell: Cell) -> list[float]:
    outcomes = sorted((o for o in cell.outcomes if o.criterion == DEFAULT), key=lambda o: o.threshold or 0.0)
    return [o.layers if figure.shows == "layers" else 100 * o.score for o in outcomes]
