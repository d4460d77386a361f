"""Test whether a configuration learned more than the majority class: the margin of its scores over it, from all its runs.

The ledger records the margin with a run's end; for older ledgers it is computed from the run's validation logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leebert.errors import SweepError
from leebert.evaluate import RecordedLogits
from leebert.majority import AgainstMajority, Verdict, against_majority, exits_in_words, margin_in_words, pooled
from tune.analysis.stats import Interval, corrected_t, fold_ratio
from tune.space import SweepSpec
from tune.store.held_out import cell_logits
from tune.store.ledger import LedgerRecord

#: What to try where nothing was learned, by the keys of a search space.
ADVICE = "try more epochs (max_epochs), a larger λ1 (lr_theta), or another pooling"


@dataclasses.dataclass(frozen=True)
class ConfigurationMargin:
    """A configuration compared with the majority class.

    Attributes:
        samples: The margin on the pooled validation samples of all runs. It decides the verdict: whether these models
            are above the majority class on samples like these.
        over_cells: Corrected resampled t interval of the runs' mean margins, for another training.
        collapsed_cells: The number of runs in which every exit predicts a single class.
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
        """Return it JSON-ready."""
        cells = self.over_cells
        ends = {"low": round(cells.low, 6), "high": round(cells.high, 6)} if cells.defined else {}
        return {
            **self.samples.as_dict(),
            "cells": cells.cells,
            "collapsed_cells": self.collapsed_cells,
            **({"over_cells": ends} if ends else {}),
        }

    def in_words(self) -> str:
        """Return the margin with its interval and the collapsed exits, or that every exit predicts a single class."""
        if self.verdict == "collapsed":
            return "every exit predicts a single class in every run"
        text = margin_in_words(self.samples.margin, self.samples.interval)
        if self.samples.collapsed:
            text += f", single class: {exits_in_words(self.samples.collapsed)}"
        if self.collapsed_cells:
            text += f", collapsed in {self.collapsed_cells} of {self.over_cells.cells} runs"
        return text


def of_cell(folder: Path, record: LedgerRecord, metric: str) -> AgainstMajority | None:
    """Compare a finished run with the majority class.

    Args:
        folder: The sweep's folder.
        record: The record of the run's end.
        metric: Name of the task's metric.

    Returns:
        The comparison; None if neither the record nor the logits allow it.
    """
    if record.get("majority"):
        return AgainstMajority.of(record["majority"])
    if "held_out" not in record:
        return None
    try:
        return of_logits(cell_logits(folder, record)[0], metric)
    except SweepError:  # reported where the logits are needed
        return None


def of_logits(held_out: RecordedLogits, metric: str) -> AgainstMajority | None:
    """Compare recorded logits with the majority class."""
    assert held_out.labels is not None
    return against_majority(held_out.logits, held_out.labels, metric)


def of_cells(
    cells: Mapping[tuple[int, int], AgainstMajority | None], test_train_ratio: float
) -> ConfigurationMargin | None:
    """Combine all runs of a configuration, by (seed, fold); None if one of them is unknown."""
    margins = {key: cell for key, cell in cells.items() if cell is not None}
    if not margins or len(margins) < len(cells) or len({len(cell.margins) for cell in margins.values()}) > 1:
        return None
    folds = sorted({fold for _, fold in margins})
    by_fold = [[cell for (_, f), cell in sorted(margins.items()) if f == fold] for fold in folds]
    over_cells = corrected_t([cell.margin for cell in margins.values()], test_train_ratio)
    return ConfigurationMargin(pooled(by_fold), over_cells, sum(cell.all_collapsed for cell in margins.values()))


def of_configuration(
    folder: Path, records: Sequence[LedgerRecord], metric: str, test_train_ratio: float
) -> ConfigurationMargin | None:
    """Compare a configuration with the majority class.

    Args:
        folder: The sweep's folder.
        records: Records of its runs' ends.
        metric: Name of the task's metric.
        test_train_ratio: Validation samples of a fold / its training samples.

    Returns:
        The margins; None if a run allows no comparison.
    """
    scored = [r for r in records if r.get("score") is not None]
    return of_cells({(r["seed"], r["fold"]): of_cell(folder, r, metric) for r in scored}, test_train_ratio)


def margins_of(
    ends: Mapping[str, Sequence[LedgerRecord]],
    folders: Mapping[str, Path],
    spec: SweepSpec,
    manifest: Mapping[str, Any],
) -> dict[str, ConfigurationMargin]:
    """Compare several configurations with the majority class, skipping those for which it is unknown.

    Args:
        ends: The end records of each configuration's finished runs.
        folders: The sweep folder of each configuration.
        spec: Their space; with several sweeps any, since they share folds and metric.
        manifest: The same sweep's manifest.
    """
    metric, ratio = manifest["metric"], ratio_of(spec, manifest)
    margins = {key: of_configuration(folders[key], records, metric, ratio) for key, records in ends.items()}
    return {key: margin for key, margin in margins.items() if margin is not None}


def ratio_of(spec: SweepSpec, manifest: Mapping[str, Any]) -> float:
    """Return validation samples per training sample of a sweep's runs, for corrected intervals."""
    return fold_ratio(spec.folds) if spec.folds > 1 else float(manifest.get("test_train_ratio") or 1 / 9)


def none_learned(margins: Sequence[ConfigurationMargin], advice: str = ADVICE) -> str:
    """Return a sentence that no configuration learned anything, with what to try."""
    count, stuck = len(margins), sum(m.verdict == "collapsed" for m in margins)
    score = max(m.samples.score for m in margins)
    subject = f"none of {count} completed configurations is" if count > 1 else "the one completed configuration is not"
    every = f" ({stuck} of them predict{'s' if stuck == 1 else ''} a single class at every exit)" if stuck else ""
    return f"{subject} significantly above the majority class, which scores {100 * score:.2f}{every}; {advice}"


def conclusion(margins: Sequence[ConfigurationMargin]) -> str:
    """Compare a sweep's completed configurations with the majority class in a sentence; empty if unknown."""
    learned = [m for m in margins if m.learned]
    if not margins:
        return ""
    if not learned:
        return none_learned(margins)
    top = max(learned, key=lambda m: m.samples.margin)
    count = f"{len(learned)} of {len(margins)} completed configurations learned more than the majority class"
    margin = margin_in_words(top.samples.margin, top.samples.interval)
    score = f"which scores {100 * top.samples.score:.2f}; the largest margin is {margin}"
    rest = "" if len(learned) == len(margins) else f"; for the others, {ADVICE}"
    return f"{count}, {score}{rest}"
