"""Does a best file's cross-validated score come out again? Every cell is trained anew, from the file alone.

Bit for bit where versions, CPU flags, threads, precision and device are those of the cell; elsewhere within
:data:`TOLERANCE`. With other data, folds, weights or code it would be another experiment, and nothing is claimed.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leebert.config import Precision
from leebert.errors import SweepError
from leebert.outside import origins
from leebert.provenance import backbone_identity, code_version, differences, versions
from leebert.runtime import Runtime, limited_threads
from leebert.training_data import effective_task, load_training_data
from tune.models.best_file import BestFile, CellLogits
from tune.running.crossval import Study

#: How far the mean may be off where settings differ: half a point.
TOLERANCE = 0.005

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class CellCheck:
    """One cell: its recorded score and the one that came out (None: diverged).

    identical: down to each exit's score. logits_identical: to the last bit; None where none are recorded. differs:
    settings unlike those that it was recorded with, which may change last digits.
    """

    seed: int
    fold: int
    recorded: float
    now: float | None
    identical: bool
    logits_identical: bool | None = None
    differs: tuple[str, ...] = ()

    @property
    def bit_for_bit(self) -> bool:
        return self.identical and self.logits_identical is not False


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came out. Scores are fractions; `logits_identical` is None without recorded logits.

    foreign: what makes it another experiment (data, folds, weights, code). differs: settings of any cell unlike the
    recorded ones.
    """

    recorded: float
    now: float | None
    cells: tuple[CellCheck, ...]
    foreign: tuple[str, ...]
    differs: tuple[str, ...]

    @classmethod
    def of(cls, cells: Sequence[CellCheck], foreign: Sequence[str] = ()) -> Verdict:
        """What the cells add up to."""
        now = None if any(c.now is None for c in cells) else math.fsum(c.now or 0.0 for c in cells) / len(cells)
        before = math.fsum(c.recorded for c in cells) / len(cells)
        differs = dict.fromkeys(line for c in cells for line in c.differs)
        return cls(before, now, tuple(cells), tuple(foreign), tuple(differs))

    @property
    def logits_identical(self) -> bool | None:
        told = [c.logits_identical for c in self.cells if c.logits_identical is not None]
        return all(told) if told else None

    @property
    def bit_for_bit(self) -> bool:
        return bool(self.cells) and all(cell.bit_for_bit for cell in self.cells)

    @property
    def reproduced(self) -> bool:
        """Whether it may be claimed: a cell on equal settings has no room, the mean half a point where others differ."""
        if self.foreign or self.now is None or not self.cells:
            return False
        exact = all(cell.bit_for_bit or cell.differs for cell in self.cells)
        return self.bit_for_bit or (exact and abs(self.now - self.recorded) <= TOLERANCE)

    @property
    def conclusion(self) -> str:
        """One line for a person."""
        if self.foreign:
            other = f" (settings differ, too: {'; '.join(self.differs)})" if self.differs else ""
            return "not reproduced, another experiment: " + "; ".join(self.foreign) + other
        if self.now is None:
            return "not reproduced: a cell diverged"
        off = f"{100 * self.now:.4f} against {100 * self.recorded:.4f}, {100 * (self.now - self.recorded):+.4f} points"
        because = f" ({'; '.join(self.differs)})" if self.differs else ""
        if self.bit_for_bit:
            return f"reproduced bit for bit: {100 * self.now:.4f} over {len(self.cells)} cells" + because
        if self.reproduced:
            return f"reproduced within {100 * TOLERANCE:g} points: {off}; settings differ{because}"
        strict = [c for c in self.cells if not c.differs and not c.bit_for_bit]
        if strict:
            names = ", ".join(f"seed {c.seed} fold {c.fold}" for c in strict)
            because += f"; the settings of {names} are the recorded ones, so every bit should agree"
        return f"not reproduced: {off}" + because

    def as_dict(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self),
            "logits_identical": self.logits_identical,
            "reproduced": self.reproduced,
            "bit_for_bit": self.bit_for_bit,
            "conclusion": self.conclusion,
        }


def verify(
    best: BestFile,
    *,
    device: str | None = None,
    threads: int | None = None,
    precision: Precision | None = None,
    anyway: bool = False,
    say: Say = lambda line: None,
) -> Verdict:
    """Train the best file's cells again and compare; device, threads and precision are each cell's own unless given.

    Another experiment is not trained at all, unless `anyway` asks for its figures: the verdict stays the same.
    """
    config, found = best.config, best.found
    with tempfile.TemporaryDirectory() as cache:
        from leebert.data.folds import make_folds

        task = effective_task(config.task, config.data.group_by)
        data = load_training_data(task, config.data, config.model, Path(cache))
        facts = found["folds"]
        folds = make_folds(data.examples, task, facts["k"], facts["seed"])
        settings = [_settings(best, cell, device, threads, precision) for cell in found["cells"]]
        foreign = _foreign(best, data.examples.fingerprint(), folds.digest)
        if foreign and not anyway:
            unlike = dict.fromkeys(line for one in settings for line in one.differs(found))
            return Verdict(found["score_mean"], None, (), foreign, tuple(unlike))
        study = Study(
            folder=cache,
            problem=data.problem(),
            folds=folds,
            cells=tuple((cell["seed"], cell["fold"]) for cell in found["cells"]),
            training=config.training.model_dump(exclude={"seed"}),
        )
        logits = {(c.seed, c.fold): c for c in _logits_if_there(best)}
        checks: list[CellCheck] = []
        said: set[str] = set()
        for number, (cell, own) in enumerate(zip(found["cells"], settings, strict=True), start=1):
            differs = own.differs(found)
            for line in differs:
                if line not in said:
                    say(f"not as recorded: {line}")
            said.update(differs)
            check = _train(own.applied(study), cell, logits.get((cell["seed"], cell["fold"])), own.threads)
            checks.append(dataclasses.replace(check, differs=differs))
            shown = "diverged" if check.now is None else f"{100 * check.now:.4f}"
            say(
                f"cell {number} of {len(settings)}: seed {check.seed}, fold {check.fold}: {shown}, "
                f"recorded {100 * check.recorded:.4f}"
            )
    return Verdict.of(checks, foreign)


@dataclasses.dataclass(frozen=True)
class _Settings:
    """How a cell is run; `recorded`: how it ran in the sweep, as `Runtime.describe` says it."""

    device: str
    threads: int | None
    precision: Precision
    recorded: Mapping[str, Any]

    def applied(self, study: Study) -> Study:
        return dataclasses.replace(study, training={**study.training, "precision": self.precision}, device=self.device)

    def differs(self, found: Mapping[str, Any]) -> tuple[str, ...]:
        """What is unlike the recorded settings, in words; a GPU is, since its sums have no fixed order."""
        with limited_threads(self.threads):
            runtime = Runtime.of(self.precision, self.device)
            now = {
                "versions": versions(),
                "parts": origins(found.get("parts") or ()),
                "runtime": runtime.describe(),
            }
        was = {"versions": found.get("versions"), "parts": found.get("parts"), "runtime": self.recorded or None}
        lines = differences(was, now)
        if runtime.device.type == "cuda":
            lines.append("a GPU adds up in no fixed order")
        return tuple(lines)


def _settings(
    best: BestFile, cell: Mapping[str, Any], device: str | None, threads: int | None, precision: Precision | None
) -> _Settings:
    recorded = dict(cell.get("runtime") or best.found.get("runtime") or {})
    return _Settings(
        device or ("cpu" if recorded.get("device") == "cpu" else "auto"),
        threads or recorded.get("threads"),
        precision or recorded.get("precision", best.config.training.precision),
        recorded,
    )


def _train(study: Study, cell: Mapping[str, Any], was: CellLogits | None, threads: int | None) -> CellCheck:
    """A cell trained anew, and what came out beside its record."""
    seed, fold = cell["seed"], cell["fold"]
    kept: Any = None
    reports = []
    with limited_threads(threads):
        for report in study.train({"accumulate": cell.get("accumulate", 1)}, seed, fold):
            kept = report.held_out or kept
            # Neither model nor logits of finished epochs are needed: they would fill the memory.
            reports.append(dataclasses.replace(report, held_out=None, model=None))
    last = reports[-1]
    best = next((r for r in reports if r.epoch == last.best_epoch), None)
    now = best.score if best is not None and last.ended != "diverged" else None
    identical = now == cell["score"] and best is not None and best.exits["score"] == list(cell["exits"])
    same = None
    if kept is not None and was is not None:
        rows = study.folds.ids[study.folds.held_out(fold)]
        same = np.array_equal(was.rows, rows) and np.array_equal(was.held_out.logits, kept.logits)
    return CellCheck(seed, fold, cell["score"], now, identical, same)


def _foreign(best: BestFile, fingerprint: str, folds: str) -> tuple[str, ...]:
    """What makes it another experiment, a line each."""
    data = "training data's fingerprint"
    was = {
        data: best.found["data_fingerprint"],
        "folds' digest": best.found["folds"]["digest"],
        "backbone": best.found["backbone"],
        "code": best.found["code"],
    }
    now = {
        data: fingerprint,
        "folds' digest": folds,
        "backbone": backbone_identity(best.config.model.backbone),
        "code": code_version(),
    }
    # Other data has other folds.
    keys = [data if was[data] != now[data] else "folds' digest", "backbone", "code"]
    return tuple(f"the {line}" for line in differences(was, now, keys))


def _logits_if_there(best: BestFile) -> list[CellLogits]:
    """The recorded logits; none where the best file names none, since its scores alone can be compared."""
    return best.logits() if best.found.get("held_out") else []


def print_verdict(verdict: Verdict) -> None:
    """The cells as a table on stdout, and what they add up to where that may be claimed."""
    from rich.console import Console
    from rich.table import Table

    if verdict.cells:
        table = Table(
            "seed", "fold", "recorded", "now", "difference", title="cross-validated, per cent", title_justify="left"
        )
        for c in verdict.cells:
            now = ("diverged", "") if c.now is None else (f"{100 * c.now:.4f}", f"{100 * (c.now - c.recorded):+.4f}")
            table.add_row(str(c.seed), str(c.fold), f"{100 * c.recorded:.4f}", *now)
        Console().print(table)
    if verdict.reproduced:
        print(verdict.conclusion)


def claim(verdict: Verdict) -> None:
    """Raises SweepError for a verdict that may not be claimed as a reproduction."""
    if not verdict.reproduced:
        raise SweepError(verdict.conclusion)
