"""A finished cell's curve of score against layers: as the record of its end has it, or replayed from its held-out logits.

Records written before there was one curve for everything hold 20 evenly spaced thresholds, which are not read any more.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from leebert.errors import LeebertError
from leebert.tradeoff import Tradeoff, layers_within, tradeoff
from tune.store.folder import SweepFolder
from tune.store.held_out import cell_logits

#: The key of a cell's curve in the record of its end.
CURVE = "curve"

#: What :func:`layers_needed` tells, for readers of pages and tables.
FEWEST = "the fewest mean layers under normalised entropy whose score is at most 1 point below that of all layers"

#: From the record of a cell's end to its curve; None where there is none to be had.
CurveOf = Callable[[Mapping[str, Any]], Tradeoff | None]


def stored(cell_end: Mapping[str, Any]) -> Tradeoff | None:
    """The curve that a record holds; None for one that was written before records held any, or of a diverged cell."""
    return Tradeoff.of(cell_end[CURVE]) if CURVE in cell_end else None


class CellCurves:
    """The curves of one sweep's cells under the default criterion.

    What a record does not hold is replayed once; where that can't be done, `say` hears it once and the cell has no curve.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] | None = None) -> None:
        self._folder, self._say = folder, say
        self._replayed: dict[str, Tradeoff | None] = {}
        self._told = False

    def __call__(self, cell_end: Mapping[str, Any]) -> Tradeoff | None:
        found = stored(cell_end)
        if found is not None or "held_out" not in cell_end:
            return found
        name = str(cell_end["held_out"])
        if name not in self._replayed:
            self._replayed[name] = self._replay(cell_end)
        return self._replayed[name]

    def _replay(self, cell_end: Mapping[str, Any]) -> Tradeoff | None:
        try:
            return tradeoff(cell_logits(self._folder, cell_end)[0], metric=self._metric)
        except LeebertError as error:
            if not self._told:
                self._told = True
                text = f"{error}; mean layers and curves that need it are left out"
                self._say(text) if self._say else warnings.warn(text, stacklevel=4)
            return None

    @functools.cached_property
    def _metric(self) -> str:
        return str(SweepFolder(self._folder).manifest["metric"])


def of_all(cell_ends: Iterable[Mapping[str, Any]], curve_of: CurveOf) -> list[Tradeoff]:
    """The curves of a configuration's cells; none where one lacks its curve, since a mean over others says something else."""
    found: list[Tradeoff] = []
    for cell_end in cell_ends:
        curve = curve_of(cell_end)
        if curve is None:
            return []
        found.append(curve)
    return found


def layers_needed(cell_ends: Iterable[Mapping[str, Any]], curve_of: CurveOf) -> float | None:
    """The fewest mean layers that cost a configuration at most a point against all; None where a cell has no curve.

    `cv/layers` in MLflow and `layers` in best files, `best`, `report` and `compare`, to two decimals.
    """
    curves = of_all(cell_ends, curve_of)
    return round(layers_within(curves), 2) if curves else None
