"""A finished run's curve of score against mean exit layer: from its end record, or replayed from its validation logits.

Older records hold a curve on 20 evenly spaced thresholds under another key, which is ignored.
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

#: The key of a run's curve in its end record.
CURVE = "curve"

#: What :func:`layers_needed` returns, for readers of pages and tables.
FEWEST = "the smallest mean exit layer under normalised entropy with a score at most 1 point below full depth"

#: Maps a run's end record to its curve; None if there is none.
CurveOf = Callable[[Mapping[str, Any]], Tradeoff | None]


def stored(cell_end: Mapping[str, Any]) -> Tradeoff | None:
    """Return the curve in an end record; None for older records and diverged runs."""
    return Tradeoff.of(cell_end[CURVE]) if CURVE in cell_end else None


class CellCurves:
    """The curves of one sweep's runs under the default criterion.

    A curve that is not recorded is replayed once. If that fails, the run has no curve, and `report` (by default a warning)
    receives the first such failure.
    """

    def __init__(self, folder: Path, report: Callable[[str], None] | None = None) -> None:
        self._folder, self._report = folder, report
        self._replayed: dict[str, Tradeoff | None] = {}
        self._reported = False

    def __call__(self, cell_end: Mapping[str, Any]) -> Tradeoff | None:
        curve = stored(cell_end)
        if curve is not None or "held_out" not in cell_end:
            return curve
        name = str(cell_end["held_out"])
        if name not in self._replayed:
            self._replayed[name] = self._replay(cell_end)
        return self._replayed[name]

    def _replay(self, cell_end: Mapping[str, Any]) -> Tradeoff | None:
        try:
            return tradeoff(cell_logits(self._folder, cell_end)[0], metric=self._metric)
        except LeebertError as error:
            if not self._reported:
                self._reported = True
                text = f"{error}; layers and curves that need it are not available"
                self._report(text) if self._report else warnings.warn(text, stacklevel=4)
            return None

    @functools.cached_property
    def _metric(self) -> str:
        return str(SweepFolder(self._folder).manifest["metric"])


def of_all(cell_ends: Iterable[Mapping[str, Any]], curve_of: CurveOf) -> list[Tradeoff]:
    """Return the curves of a configuration's runs; none if one lacks its curve, as means over fewer runs differ."""
    curves: list[Tradeoff] = []
    for cell_end in cell_ends:
        curve = curve_of(cell_end)
        if curve is None:
            return []
        curves.append(curve)
    return curves


def layers_needed(cell_ends: Iterable[Mapping[str, Any]], curve_of: CurveOf) -> float | None:
    """Return the smallest mean exit layer with a score at most 1 point below full depth; None if a run has no curve.

    It is `cv/layers` in MLflow and `layers` in best files, `best`, `report` and `compare`, rounded to two decimals.
    """
    curves = of_all(cell_ends, curve_of)
    return round(layers_within(curves), 2) if curves else None
