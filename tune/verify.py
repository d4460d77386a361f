"""Does a best file's cross-validated score come out again? Every cell is trained anew, from the file alone.

Bit for bit where versions, CPU flags, threads, precision and device are those of the sweep; elsewhere within
:data:`TOLERANCE`. With other data, folds, weights or code it would be another experiment, and nothing is claimed.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leebert.config import Precision
from leebert.errors import SweepError
from leebert.problem import TextProblem
from leebert.provenance import backbone_identity, code_version, differences, versions
from leebert.recipe import effective_task, load_training_data
from leebert.runtime import Runtime, limited_threads
from tune.crossval import Study
from tune.found import BestFile, CellLogits

#: How far the mean may be off where settings differ: half a point.
TOLERANCE = 0.005

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class CellCheck:
    """One cell: its recorded score and the one that came out (None: diverged); `identical` down to each exit's score."""

    seed: int
    fold: int
    recorded: float
    now: float | None
    identical: bool


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came out. Scores are fractions; `logits_identical` is None without recorded logits.

    foreign: what makes it another experiment (data, folds, weights, code). differs: settings unlike the recorded ones,
    which may change last digits.
    """

    recorded: float
    now: float | None
    cells: tuple[CellCheck, ...]
    foreign: tuple[str, ...]
    differs: tuple[str, ...]
    logits_identical: bool | None = None

    @property
    def bit_for_bit(self) -> bool:
        cells = bool(self.cells) and all(cell.identical for cell in self.cells)
        return cells and self.logits_identical is not False

    @property
    def reproduced(self) -> bool:
        """Whether it may be claimed: equal settings leave no room, other settings half a point."""
        if self.foreign or self.now is None:
            return False
        return self.bit_for_bit or (bool(self.differs) and abs(self.now - self.recorded) <= TOLERANCE)

    @property
    def conclusion(self) -> str:
        """One line for a person."""
        if self.foreign:
            return "not reproduced, another experiment: " + "; ".join(self.foreign)
        if self.now is None:
            return "not reproduced: a cell diverged"
        off = f"{100 * self.now:.4f} against {100 * self.recorded:.4f}, {100 * (self.now - self.recorded):+.4f} points"
        because = f" ({'; '.join(self.differs)})" if self.differs else ""
        if self.bit_for_bit:
            return f"reproduced bit for bit: {100 * self.now:.4f} over {len(self.cells)} cells" + because
        if self.reproduced:
            return f"reproduced within {100 * TOLERANCE:g} points: {off}; settings differ{because}"
        return f"not reproduced: {off}" + (because or "; the settings are the recorded ones, so every bit should agree")

    def as_dict(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self),
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
    """Train the best file's cells again and compare; device, threads and precision are the recorded ones unless given.

    Another experiment is not trained at all, unless `anyway` asks for its figures: the verdict stays the same.
    """
    config, found = best.config, best.found
    recorded = dict(found.get("runtime") or {})
    with tempfile.TemporaryDirectory() as cache:
        from leebert.data.folds import make_folds

        task = effective_task(config.task, config.data.group_by)
        data = load_training_data(task, config.data, config.model, Path(cache))
        facts = found["folds"]
        folds = make_folds(data.examples, task, facts["k"], facts["seed"])
        foreign = _foreign(best, data.examples.fingerprint(), folds.digest)
        if foreign and not anyway:
            return Verdict(found["score_mean"], None, (), foreign, ())
        problem: Any = TextProblem(
            data.tokens_path, config.model.backbone, task.label_names, task.metric, config.model.pooling
        )
        study = Study(
            folder=cache,
            problem=problem,
            folds=folds,
            cells=tuple((cell["seed"], cell["fold"]) for cell in found["cells"]),
            training={
                **config.training.model_dump(exclude={"seed"}),
                "precision": precision or recorded.get("precision", config.training.precision),
            },
            device=device or ("cpu" if recorded.get("device") == "cpu" else "auto"),
        )
        logits = {(c.seed, c.fold): c for c in _logits_if_there(best)}
        with limited_threads(threads or recorded.get("threads")):
            runtime = Runtime.of(study.training["precision"], study.device)
            differs = _differs(found, runtime)
            for line in differs:
                say(f"not as recorded: {line}")
            checks, same = _train(study, found["cells"], logits, say)
    now = None if any(c.now is None for c in checks) else math.fsum(c.now or 0.0 for c in checks) / len(checks)
    before = math.fsum(c.recorded for c in checks) / len(checks)
    return Verdict(before, now, tuple(checks), foreign, differs, same if logits else None)


def _train(
    study: Study, cells: list[dict[str, Any]], logits: Mapping[tuple[int, int], CellLogits], say: Say
) -> tuple[list[CellCheck], bool]:
    """Each cell's check, and whether all recorded logits came out to the last bit."""
    checks, same = [], True
    for i, cell in enumerate(cells, start=1):
        seed, fold = cell["seed"], cell["fold"]
        kept: Any = None
        reports = []
        for report in study.train({"accumulate": cell.get("accumulate", 1)}, seed, fold):
            kept = report.held_out or kept
            # Neither model nor logits of finished epochs are needed: they would fill the memory.
            reports.append(dataclasses.replace(report, held_out=None, model=None))
        last = reports[-1]
        best = next((r for r in reports if r.epoch == last.best_epoch), None)
        now = best.score if best is not None and last.ended != "diverged" else None
        identical = now == cell["score"] and best is not None and best.exits["score"] == list(cell["exits"])
        checks.append(CellCheck(seed, fold, cell["score"], now, identical))
        if kept is not None and (was := logits.get((seed, fold))) is not None:
            rows = study.folds.ids[study.folds.held_out(fold)]
            same &= np.array_equal(was.rows, rows) and np.array_equal(was.held_out.logits, kept.logits)
        shown = "diverged" if now is None else f"{100 * now:.4f}"
        say(f"cell {i} of {len(cells)}: seed {seed}, fold {fold}: {shown}, recorded {100 * cell['score']:.4f}")
    return checks, same


def _foreign(best: BestFile, fingerprint: str, folds: str) -> tuple[str, ...]:
    """What makes it another experiment, a line each."""
    found = best.found
    name = backbone_identity(best.config.model.backbone)
    lines = []
    if found["data_fingerprint"] != fingerprint:
        lines.append(f"the training data's fingerprint was {found['data_fingerprint']}, is {fingerprint}")
    elif found["folds"]["digest"] != folds:
        lines.append(f"the folds' digest was {found['folds']['digest']}, is {folds}")
    for part in ("weights", "tokenizer", "revision"):
        if found["backbone"].get(part) != name.get(part):
            lines.append(f"the backbone's {part} was {found['backbone'].get(part)}, is {name.get(part)}")
    if found["code"] != code_version():
        lines.append(f"the code was {found['code']}, is {code_version()}")
    return tuple(lines)


def _differs(found: Mapping[str, Any], runtime: Runtime) -> tuple[str, ...]:
    """Settings unlike the recorded ones, in words; a GPU is one, since its sums have no fixed order."""
    now = {"versions": versions(), "runtime": runtime.describe()}
    lines = list(differences({key: found.get(key) for key in now}, now))
    for cell in found["cells"]:
        if "runtime" in cell:
            lines += differences({"runtime": cell["runtime"]}, now)
    if runtime.device.type == "cuda":
        lines.append("a GPU adds up in no fixed order")
    return tuple(dict.fromkeys(lines))


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
