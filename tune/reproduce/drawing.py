"""Draw the paper's figures 2 to 4 from results: mean exit layer or score against patience, with standard errors over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure as Drawn

from leebert.exits import DEFAULT
from tune.analysis.figures import Band, bands, colour
from tune.reproduce.outcomes import ReproducedCell
from tune.reproduce.paper import PaperFigure, PaperRow
from tune.reproduce.results import Results


@dataclasses.dataclass(frozen=True)
class Curve:
    """A method's curve over patience.

    Attributes:
        row: The figure's row.
        seeds: How many seeds the curve is the mean of.
        band: Patience, mean, and mean ± standard error; the error of one seed is 0.
    """

    row: PaperRow
    seeds: int
    band: Band

    @property
    def label(self) -> str:
        """The method and its number of seeds, in which the curves of one figure may differ."""
        return f"{self.row.title} ({self.seeds} seed{'s' if self.seeds > 1 else ''})"


def curves(figure: PaperFigure, rows: Sequence[PaperRow], results: Results) -> list[Curve]:
    """Compute the curve of each method that has runs with several exits.

    Args:
        figure: The paper's figure.
        rows: The methods to show.
        results: The results.

    Returns:
        The curves.
    """
    drawn = []
    for row in rows:
        cells = [cell for cell in results.of(row.method, row.keep).values() if len(cell.exits) > 1]
        if cells:
            values = np.array([_by_patience(figure, cell) for cell in cells])  # (seeds, M - 1)
            mean = values.mean(axis=0)
            error = values.std(axis=0, ddof=1) / np.sqrt(len(cells)) if len(cells) > 1 else np.zeros_like(mean)
            band = np.arange(1, values.shape[1] + 1), mean, mean - error, mean + error
            drawn.append(Curve(row, len(cells), band))
    return drawn


def draw(figure: PaperFigure, title: str, split: str, selected: Sequence[Curve]) -> Drawn:
    """Draw at least one curve of :func:`curves`.

    Args:
        figure: The paper's figure.
        title: The title of the axes.
        split: The evaluated split's name.
        selected: The curves.

    Returns:
        A matplotlib figure.
    """
    colours = [colour(curve.row.method, i) for i, curve in enumerate(selected)]
    y = "mean exit layer" if figure.shows == "layers" else f"score on {split}, per cent"
    if any(curve.seeds > 1 for curve in selected):
        y += " (± standard error)"
    return bands({title: {curve.label: curve.band for curve in selected}}, DEFAULT, y, colours)


def _by_patience(figure: PaperFigure, cell: ReproducedCell) -> list[float]:
    outcomes = sorted((o for o in cell.outcomes if o.criterion == DEFAULT), key=lambda o: o.threshold or 0.0)
    return [o.layers if figure.shows == "layers" else 100 * o.score for o in outcomes]
