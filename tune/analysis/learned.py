"""Which configurations have learned anything: their scores beside the majority class's, over all their cells.

The ledger tells it with a cell's end; for one of an older version it is computed from the cell's held-out logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leebert.errors import SweepError
from leebert.evaluate import HeldOut
from leebert.majority import AgainstMajority, Verdict, against_majority, exits_in_words, margin_in_words, pooled
from tune.analysis.stats import Interval, corrected_t, fold_ratio
from tune.space import SweepSpec
from tune.store.held_out import cell_logits
from tune.store.ledger import LedgerRecord

#: What to try where nothing was learned, in the keys of a search space.
ADVICE = "try more epochs (max_epochs), a larger λ1 (lr_theta), or another pooling"


@dataclasses.dataclass(frozen=True)
class ConfigurationMargin:
    """A configuration beside the majority class.

    samples: its cells' validation samples pooled, which the verdict is by: whether these models are above the majority
    class on samples like these. over_cells: the corrected resampled t of the cells' mean margins: where another training
    of the configuration may lie. collapsed_cells: cells in which every exit predicts a single class.
    """

    samples: AgainstMajority
    over_cells: Interval
    collapsed_cells: int

    @property
    def verdict(self) -> Verdict:
        return self.samples.verdict

    @property
    def learned(self) -> bool:
        return self.verdict == "learned"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        cells = self.over_cells
        ends = {"low": round(cells.low, 6), "high": round(cells.high, 6)} if cells.known else {}
        return {
            **self.samples.as_dict(),
            "cells": cells.cells,
            "collapsed_cells": self.collapsed_cells,
            **({"over_cells": ends} if ends else {}),
        }

    def in_words(self) -> str:
        """`every exit predicts a single class`, or the margin with its interval, and which exits are collapsed."""
        if self.verdict == "collapsed":
            return "every exit predicts a single class in every cell"
        said = margin_in_words(self.samples.margin, self.samples.interval)
        if self.samples.collapsed:
            said += f", single class: {exits_in_words(self.samples.collapsed)}"
        if self.collapsed_cells:
            said += f", collapsed in {self.collapsed_cells} of {self.over_cells.cells} cells"
        return said


def of_cell(folder: Path, record: LedgerRecord, metric: str) -> AgainstMajority | None:
    """A finished cell beside the majority class; None where neither its record nor its logits tell."""
    if record.get("majority"):
        return AgainstMajority.of(record["majority"])
    if "held_out" not in record:
        return None
    try:
        return of_logits(cell_logits(folder, record)[0], metric)
    except SweepError:  # said where the logits are needed
        return None


def of_logits(held_out: HeldOut, metric: str) -> AgainstMajority | None:
    """Recorded logits beside the majority class."""
    assert held_out.labels is not None
    return against_majority(held_out.logits, held_out.labels, metric)


def of_cells(
    cells: Mapping[tuple[int, int], AgainstMajority | None], test_train_ratio: float
) -> ConfigurationMargin | None:
    """All cells of a configuration, by (seed, fold), as one; None where one of them is unknown."""
    known = {key: cell for key, cell in cells.items() if cell is not None}
    if not known or len(known) < len(cells) or len({len(cell.margins) for cell in known.values()}) > 1:
        return None
    folds = sorted({fold for _, fold in known})
    by_fold = [[cell for (_, f), cell in sorted(known.items()) if f == fold] for fold in folds]
    over_cells = corrected_t([cell.margin for cell in known.values()], test_train_ratio)
    return ConfigurationMargin(pooled(by_fold), over_cells, sum(cell.all_collapsed for cell in known.values()))


def of_configuration(
    folder: Path, records: Sequence[LedgerRecord], metric: str, test_train_ratio: float
) -> ConfigurationMargin | None:
    """A configuration by the ends of its finished cells; None where they can't tell."""
    scored = [r for r in records if r.get("score") is not None]
    return of_cells({(r["seed"], r["fold"]): of_cell(folder, r, metric) for r in scored}, test_train_ratio)


def margins_of(
    ends: Mapping[str, Sequence[LedgerRecord]],
    folders: Mapping[str, Path],
    spec: SweepSpec,
    manifest: Mapping[str, Any],
) -> dict[str, ConfigurationMargin]:
    """Several configurations beside the majority class, without those whose cells can't tell.

    Args:
        ends: The records of each configuration's finished cells.
        folders: The folder of the sweep that each configuration is of.
        spec: Their space; of several sweeps any, since they have folds and metric in common.
        manifest: The same sweep's manifest.
    """
    metric, ratio = manifest["metric"], ratio_of(spec, manifest)
    margins = {key: of_configuration(folders[key], records, metric, ratio) for key, records in ends.items()}
    return {key: margin for key, margin in margins.items() if margin is not None}


def ratio_of(spec: SweepSpec, manifest: Mapping[str, Any]) -> float:
    """Validation samples per training sample of a sweep's cells, as corrected intervals need it."""
    return fold_ratio(spec.folds) if spec.folds > 1 else float(manifest.get("test_train_ratio") or 1 / 9)


def none_learned(margins: Sequence[ConfigurationMargin], advice: str = ADVICE) -> str:
    """That none of some configurations has learned anything, and what to try."""
    count, stuck = len(margins), sum(m.verdict == "collapsed" for m in margins)
    score = max(m.samples.score for m in margins)
    what = f"none of {count} complete configurations is" if count > 1 else "the one complete configuration is not"
    every = f" ({stuck} of them predict{'s' if stuck == 1 else ''} a single class at every exit)" if stuck else ""
    return f"{what} distinguishable from the majority class, which scores {100 * score:.2f}{every}; {advice}"


def conclusion(margins: Sequence[ConfigurationMargin]) -> str:
    """What a sweep's complete configurations are against the majority class, in a sentence; empty where nothing is known."""
    learned = [m for m in margins if m.learned]
    if not margins:
        return ""
    if not learned:
        return none_learned(margins)
    top = max(learned, key=lambda m: m.samples.margin)
    said = f"{len(learned)} of {len(margins)} complete configurations learned more than the majority class"
    far = margin_in_words(top.samples.margin, top.samples.interval)
    score = f"which scores {100 * top.samples.score:.2f}; the largest margin is {far}"
    rest = "" if len(learned) == len(margins) else f"; of the others: {ADVICE}"
    return f"{said}, {score}{rest}"
