"""Re-run a best file's cross-validation, from the file alone, and check its validation score.

Scores must agree bit for bit where versions, CPU flags, threads, precision and device are equal, and within
:data:`TOLERANCE` otherwise. Other data, folds, weights or code make it another experiment, which is never reported as
reproduced.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leebert import live
from leebert.config import Precision
from leebert.console import sentence, table
from leebert.errors import SweepError
from leebert.outside import origins
from leebert.provenance import backbone_identity, code_version, differences, versions
from leebert.runtime import Runtime, limited_threads
from leebert.training_data import effective_task, load_training_data
from tune.models.best_file import BestFile, CellLogits
from tune.running.crossval import Study

log = logging.getLogger(__name__)

#: The largest accepted difference of the mean score if settings differ: half a point.
TOLERANCE = 0.005


@dataclasses.dataclass(frozen=True)
class CellCheck:
    """The comparison of one cell.

    Attributes:
        seed: The cell's seed.
        fold: Its validation fold, from 0.
        recorded: The recorded validation score, a fraction.
        now: The score of the new run; None: it diverged.
        identical: Whether the score and each exit's score are equal.
        logits_identical: Whether all logits are equal bit for bit; None if none are recorded.
        differs: Settings that differ from the recorded ones, which may change the last digits.
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
    """The comparison of all cells.

    Attributes:
        recorded: The recorded mean validation score, a fraction.
        now: The mean of the new runs; None if a cell diverged.
        cells: The cells.
        foreign: What makes it another experiment (data, folds, weights, code), a line each.
        differs: Settings of any cell that differ from the recorded ones, a line each.
    """

    recorded: float
    now: float | None
    cells: tuple[CellCheck, ...]
    foreign: tuple[str, ...]
    differs: tuple[str, ...]

    @classmethod
    def of(cls, cells: Sequence[CellCheck], foreign: Sequence[str] = ()) -> Verdict:
        """Summarise the cells."""
        now = None if any(c.now is None for c in cells) else math.fsum(c.now or 0.0 for c in cells) / len(cells)
        before = math.fsum(c.recorded for c in cells) / len(cells)
        differs = dict.fromkeys(line for c in cells for line in c.differs)
        return cls(before, now, tuple(cells), tuple(foreign), tuple(differs))

    @property
    def logits_identical(self) -> bool | None:
        compared = [c.logits_identical for c in self.cells if c.logits_identical is not None]
        return all(compared) if compared else None

    @property
    def bit_for_bit(self) -> bool:
        return bool(self.cells) and all(cell.bit_for_bit for cell in self.cells)

    @property
    def reproduced(self) -> bool:
        """Whether the score is reproduced: cells on equal settings bit for bit, the mean within :data:`TOLERANCE`."""
        if self.foreign or self.now is None or not self.cells:
            return False
        exact = all(cell.bit_for_bit or cell.differs for cell in self.cells)
        return self.bit_for_bit or (exact and abs(self.now - self.recorded) <= TOLERANCE)

    @property
    def conclusion(self) -> str:
        """The result in one line."""
        if self.foreign:
            other = f" (settings differ as well: {'; '.join(self.differs)})" if self.differs else ""
            return "not reproduced, another experiment: " + "; ".join(self.foreign) + other
        if self.now is None:
            return "not reproduced: a run diverged"
        off = f"{100 * self.now:.4f} against {100 * self.recorded:.4f}, {100 * (self.now - self.recorded):+.4f} points"
        because = f" ({'; '.join(self.differs)})" if self.differs else ""
        if self.bit_for_bit:
            return f"reproduced bit for bit: {100 * self.now:.4f} over {len(self.cells)} runs" + because
        if self.reproduced:
            return f"reproduced within {100 * TOLERANCE:g} points: {off}; settings differ{because}"
        strict = [c for c in self.cells if not c.differs and not c.bit_for_bit]
        if strict:
            names = ", ".join(f"seed {c.seed} fold {c.fold}" for c in strict)
            because += f"; the settings of {names} equal the recorded ones, so the scores should agree bit for bit"
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
) -> Verdict:
    """Train the best file's cells again and compare their scores.

    Args:
        best: The best file.
        device: auto, cpu, cuda or cuda:N; None for each cell's recorded device.
        threads: CPU threads; None for each cell's recorded number.
        precision: fp32 or bf16; None for each cell's recorded precision.
        anyway: Whether to train even if data, folds, weights or code differ; the verdict stays "not reproduced".

    Returns:
        The comparison.
    """
    config, section = best.config, best.found
    with tempfile.TemporaryDirectory() as cache:
        from leebert.data.folds import make_folds

        task = effective_task(config.task, config.data.group_by)
        live.phase("reading and preparing the training split")
        data = load_training_data(task, config.data, config.model, Path(cache))
        facts = section["folds"]
        folds = make_folds(data.examples, task, facts["k"], facts["seed"])
        settings = [_settings(best, cell, device, threads, precision) for cell in section["cells"]]
        foreign = _foreign(best, data.examples.fingerprint(), folds.digest)
        if foreign and not anyway:
            unlike = dict.fromkeys(line for one in settings for line in one.differs(section))
            return Verdict(section["score_mean"], None, (), foreign, tuple(unlike))
        study = Study(
            folder=cache,
            problem=data.problem(),
            folds=folds,
            cells=tuple((cell["seed"], cell["fold"]) for cell in section["cells"]),
            training=config.training.model_dump(exclude={"seed"}),
        )
        logits = {(c.seed, c.fold): c for c in _logits_if_there(best)}
        checks: list[CellCheck] = []
        reported: set[str] = set()
        for number, (cell, own) in enumerate(zip(section["cells"], settings, strict=True), start=1):
            differs = own.differs(section)
            for line in differs:
                if line not in reported:
                    log.warning(f"differs from the sweep: {line}")
            reported.update(differs)
            check = _train(own.applied(study), cell, logits.get((cell["seed"], cell["fold"])), own.threads, number)
            checks.append(dataclasses.replace(check, differs=differs))
            shown = "diverged" if check.now is None else f"{100 * check.now:.4f}"
            log.info(
                f"run {number} of {len(settings)}: seed {check.seed}, fold {check.fold}: {shown}, "
                f"recorded {100 * check.recorded:.4f}"
            )
    return Verdict.of(checks, foreign)


@dataclasses.dataclass(frozen=True)
class _Settings:
    """A cell's runtime settings; `recorded` are those of the sweep (:meth:`leebert.runtime.Runtime.describe`)."""

    device: str
    threads: int | None
    precision: Precision
    recorded: Mapping[str, Any]

    def applied(self, study: Study) -> Study:
        return dataclasses.replace(study, training={**study.training, "precision": self.precision}, device=self.device)

    def differs(self, section: Mapping[str, Any]) -> tuple[str, ...]:
        """List how the settings differ from the recorded ones; a GPU counts, since its sums have no fixed order."""
        with limited_threads(self.threads):
            runtime = Runtime.of(self.precision, self.device)
            now = {
                "versions": versions(),
                "parts": origins(section.get("parts") or ()),
                "runtime": runtime.describe(),
            }
        was = {"versions": section.get("versions"), "parts": section.get("parts"), "runtime": self.recorded or None}
        lines = differences(was, now)
        if runtime.device.type == "cuda":
            lines.append("a GPU sums in no fixed order")
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


def _train(
    study: Study, cell: Mapping[str, Any], was: CellLogits | None, threads: int | None, number: int
) -> CellCheck:
    """Train a cell, the `number`-th, again and compare it with its record."""
    seed, fold = cell["seed"], cell["fold"]
    what = f"run {number} of {len(study.cells)}: seed {seed}, fold {fold}"
    live.phase(f"{what}, first epoch")
    held_out: Any = None
    reports = []
    with limited_threads(threads):
        for report in study.train({"accumulate": cell.get("accumulate", 1)}, seed, fold):
            held_out = report.validation or held_out
            # Drop models and logits of finished epochs, which would fill the memory.
            reports.append(dataclasses.replace(report, validation=None, model=None))
            score = "" if report.score is None else f", score {100 * report.score:.2f}"
            live.phase(f"{what}, epoch {report.epoch + 1} done{score}")
    last = reports[-1]
    best = next((r for r in reports if r.epoch == last.best_epoch), None)
    now = best.score if best is not None and last.ended != "diverged" else None
    identical = now == cell["score"] and best is not None and best.exits["score"] == list(cell["exits"])
    logits_identical = None
    if held_out is not None and was is not None:
        rows = study.folds.ids[study.folds.held_out(fold)]
        logits_identical = np.array_equal(was.rows, rows) and np.array_equal(was.held_out.logits, held_out.logits)
    return CellCheck(seed, fold, cell["score"], now, identical, logits_identical)


def _foreign(best: BestFile, fingerprint: str, folds: str) -> tuple[str, ...]:
    """List the differences that make it another experiment."""
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
    # Other data imply other folds; name only the data then.
    keys = [data if was[data] != now[data] else "folds' digest", "backbone", "code"]
    return tuple(f"the {line}" for line in differences(was, now, keys))


def _logits_if_there(best: BestFile) -> list[CellLogits]:
    """Read the recorded logits; none if the best file has none, so that only scores are compared."""
    return best.logits() if best.found.get("held_out") else []


def print_verdict(verdict: Verdict) -> None:
    """Print the cells as a table on stdout, and the conclusion if the score is reproduced."""
    from rich.console import Console

    if verdict.cells:
        rows = []
        for c in verdict.cells:
            now = ("diverged", "") if c.now is None else (f"{100 * c.now:.4f}", f"{100 * (c.now - c.recorded):+.4f}")
            rows.append((str(c.seed), str(c.fold), f"{100 * c.recorded:.4f}", *now))
        columns = ("seed", "fold", "recorded", "now", "difference")
        print("validation score, per cent")
        Console().print(table(columns, rows, left=0, whole=range(len(columns)), framed=False))
    if verdict.reproduced:
        sentence(verdict.conclusion)


def claim(verdict: Verdict) -> None:
    """Raise SweepError if the score is not reproduced."""
    if not verdict.reproduced:
        raise SweepError(verdict.conclusion)
