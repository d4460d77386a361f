"""Train one configuration on all its cells (a cell is one seed and one fold), one after another, without Ray.

Each epoch is in the ledger before it is yielded, with its checkpoint's digest: a cell resumes only from checkpoints
that the ledger records. The logits of each run's best epoch on its validation fold go to a separate Parquet file.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leebert.checkpoint import Checkpoints
from leebert.config import TrainConfig
from leebert.data.batches import RowSubset
from leebert.data.folds import Folds
from leebert.evaluate import record_all
from leebert.problem import Problem
from leebert.runtime import Runtime, derive_seed, limited_threads
from leebert.tradeoff import tradeoff
from leebert.train import EpochReport, train_epochs
from leebert.training_options import train_config
from tune.machines.nodes import Stamp
from tune.running.outside import OutsidePlugins
from tune.running.system_usage import SystemUsage
from tune.running.watchdog import Watchdog
from tune.store.curves import CURVE
from tune.store.held_out import EVALUATED, HELD_OUT, save_held_out
from tune.store.history import Placement
from tune.store.ledger import Ledger, LedgerRecord, attempt_name


@dataclasses.dataclass(frozen=True)
class Study:
    """The data and settings that all trials of a sweep share; each process receives them once.

    Attributes:
        folder: The sweep's folder, which every node reaches.
        problem: Samples, metric and model factory.
        folds: The validation folds.
        cells: (seed, fold) in the order in which every trial trains them.
        training: Training options that are not searched.
        threads: CPU threads of a trial; None keeps torch's number.
        device: auto, cpu, cuda or cuda:N.
        keep_checkpoints: Whether checkpoints stay after a cell's end.
        hang_seconds: A trial that requests no batch for so long is ended; None: never.
        stamp: The driver's versions, which the trials' processes must share; None: not compared.
        evaluate: Splits on which the model of each new best epoch is evaluated too; no choice depends on them.
        outside: The plugins of other packages that a trial's process needs.
        system_metrics: Whether to record the use of CPU, memory and GPU with each epoch.
    """

    folder: str
    problem: Problem
    folds: Folds
    cells: tuple[tuple[int, int], ...]
    training: Mapping[str, Any]
    threads: int | None = None
    device: str = "auto"
    keep_checkpoints: bool = False
    hang_seconds: float | None = None
    stamp: Stamp | None = None
    evaluate: tuple[str, ...] = ()
    outside: OutsidePlugins = dataclasses.field(default_factory=OutsidePlugins)
    system_metrics: bool = False

    def train_config(self, values: Mapping[str, Any], seed: int) -> TrainConfig:
        """Join the fixed options, a configuration's values and a seed."""
        return train_config(self.training, values, seed)

    def train(
        self,
        values: Mapping[str, Any],
        seed: int,
        fold: int,
        checkpoints: Checkpoints | None = None,
        watchdog: Watchdog | None = None,
    ) -> Iterator[EpochReport]:
        """Train one cell on the other folds and evaluate it on its validation fold.

        Args:
            values: The configuration's values by option.
            seed: The cell's seed.
            fold: The cell's validation fold, from 0.
            checkpoints: Where to save and resume from; None saves nothing.
            watchdog: Ends the process when training hangs.

        Yields:
            One report per epoch.
        """
        config = self.train_config(values, seed)
        runtime = Runtime.of(config.precision, self.device)
        rows = self.problem.rows()
        if watchdog:
            rows = watchdog.watch(rows)
        torch.manual_seed(derive_seed(seed, fold, "init"))
        yield from train_epochs(
            self.problem.model(config),
            RowSubset(rows, self.folds.train(fold)),
            config,
            validation=RowSubset(rows, self.folds.held_out(fold)),
            metric=self.problem.metric,
            runtime=runtime,
            seed=(seed, fold),
            checkpoints=checkpoints,
            identity={"folds": self.folds.digest},
        )


@dataclasses.dataclass(frozen=True)
class CellRecord:
    """The ledger's record of an unfinished cell.

    Attributes:
        epochs: The recorded epochs, from 0.
        digests: The digests of its checkpoints.
        evaluated: Each evaluated epoch with its files (split → file name).
        files: The SHA-256 of these files by name.
    """

    epochs: Sequence[int] = ()
    digests: Sequence[str] = ()
    evaluated: Sequence[tuple[int, Mapping[str, str]]] = ()
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A configuration that the driver grants to a trial, with the number of the attempt and the records of its cells.

    Attributes:
        config: The configuration's id.
        values: Its values by option.
        attempt: The number of the attempt, from 1.
        driver: The number of the driver that grants it.
        finished: Finished cells (seed, fold).
        cells: The records of unfinished cells, by "seed/fold".
        earlier: The names of the attempts before it.
        placement: Where and in how many micro-batches to run, after memory ran out.
        index: The configuration's number in the sweep.
        fences: How many records of each earlier attempt count, as in the grant's record.
    """

    config: str
    values: Mapping[str, Any]
    attempt: int
    driver: int = 1
    finished: Sequence[tuple[int, int]] = ()
    cells: Mapping[str, CellRecord] = dataclasses.field(default_factory=dict)
    earlier: Sequence[str] = ()
    placement: Placement = dataclasses.field(default_factory=Placement)
    index: int = 0
    fences: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Attempt:
        """Restore an attempt from `dataclasses.asdict`, the form in which Ray transports it."""
        cells = {key: CellRecord(**cell) for key, cell in plain["cells"].items()}
        return cls(**{**plain, "cells": cells, "placement": Placement(**plain["placement"])})

    @property
    def name(self) -> str:
        """The name of the attempt's folders for records and checkpoints."""
        return attempt_name({"attempt": self.attempt, "driver": self.driver})

    def recorded(self, seed: int, fold: int) -> CellRecord:
        """Return the ledger's records of a run; empty for a run that has not begun."""
        return self.cells.get(f"{seed}/{fold}", CellRecord())

    def begin(self) -> LedgerRecord:
        """Return the attempt's first record, which repeats the grant in case the driver's is lost (`tune.store.gaps`)."""
        placed = dataclasses.asdict(self.placement) if self.placement != Placement() else {}
        return {
            "kind": "begin",
            "config": self.config,
            "attempt": self.attempt,
            "driver": self.driver,
            "index": self.index,
            "values": dict(self.values),
            "fences": dict(self.fences),
            **placed,
        }


def run_attempt(study: Study, attempt: Attempt) -> Iterator[list[LedgerRecord]]:
    """Train the remaining cells of a configuration; a diverged cell ends the attempt.

    Args:
        study: What all trials share.
        attempt: What the driver granted.

    Yields:
        The ledger's new records after each epoch; with a cell's last epoch also its end.
    """
    hung = hang_file(Path(study.folder), attempt.config, attempt.name)
    with limited_threads(study.threads), Watchdog(study.hang_seconds, hung) as watchdog:
        writer = Ledger(Path(study.folder) / "ledger").attempt_writer(attempt.config, attempt.name)
        try:
            writer.append(attempt.begin(), sync=False)  # synced to disk with the first epoch
            for seed, fold in study.cells:
                if (seed, fold) in {tuple(cell) for cell in attempt.finished}:
                    continue
                diverged = False
                for records in _run_cell(study, attempt, seed, fold, watchdog):
                    appended = writer.append(*records)
                    diverged = records[-1].get("ended") == "diverged"
                    # The consumer of the reports may take long; that is no hang.
                    with watchdog.asleep():
                        yield appended
                if diverged:
                    return
        finally:
            writer.close()


def checkpoint_folder(folder: str, config: str, seed: int, fold: int) -> Path:
    """Return the folder of a run's checkpoints, which has a folder per attempt, so that each has one writer.

    The driver removes it at the run's end, since a trial cannot know whether its attempt still counts.

    Args:
        folder: The sweep's folder.
        config: The configuration.
        seed: Seed of the run.
        fold: Validation fold of the run.
    """
    return Path(folder) / "checkpoints" / f"{config}-s{seed}-f{fold}"


def hang_file(folder: Path, config: str, attempt: str) -> Path:
    """Return the file to which a hanging trial writes its stacks before it exits.

    Args:
        folder: The sweep's folder.
        config: The configuration.
        attempt: Name of the attempt.
    """
    return folder / "hung" / f"{config}-{attempt}.txt"


def _run_cell(study: Study, attempt: Attempt, seed: int, fold: int, watchdog: Watchdog) -> Iterator[list[LedgerRecord]]:
    folder = Path(study.folder)
    cell = {"config": attempt.config, "attempt": attempt.attempt, "seed": seed, "fold": fold}
    recorded, place = attempt.recorded(seed, fold), checkpoint_folder(study.folder, attempt.config, seed, fold)
    checkpoints = Checkpoints(
        place / attempt.name,
        earlier=[place / name for name in attempt.earlier],
        recorded=set(recorded.digests),
        restart=True,
    )
    micro = attempt.placement.accumulate
    values = attempt.values
    if micro > 1:  # the configuration itself may already accumulate over micro-batches
        values = {**values, "accumulate": micro * study.train_config(values, seed).accumulate}
    started, reports, best = time.monotonic(), [], None
    evaluated, files = dict(recorded.evaluated), dict(recorded.files)
    usage = SystemUsage() if study.system_metrics else None
    for report in study.train(values, seed, fold, checkpoints, watchdog):
        reports.append(report)
        best = report.validation or best
        records: list[LedgerRecord] = []
        digest: LedgerRecord = {"checkpoint": report.checkpoint} if report.checkpoint else {}
        if study.evaluate and report.checkpoint and report.validation is not None:
            # The ledger names the files together with the checkpoint of the same epoch.
            digest |= _evaluate(study, attempt, seed, fold, report, watchdog)
            evaluated[report.epoch] = digest["evaluated"]
            files |= digest["digests"]
        if report.epoch not in recorded.epochs:
            system = {"system": dict(usage())} if usage else {}
            records.append({"kind": "epoch", **cell, **_jsonable(report.plain()), **system, **digest})
        elif digest:
            records.append({"kind": "checkpoint", **cell, "epoch": report.epoch, **digest})
        if report.ended:
            records.append(
                {"kind": "cell_end", **cell, **_summary(reports, started), "runtime": _runtime(study, attempt)}
            )
            if attempt.placement != Placement():
                records[-1]["placement"] = dataclasses.asdict(attempt.placement)
            if best is not None and report.ended != "diverged":
                if best.logits.shape[-1] > 1:
                    records[-1][CURVE] = tradeoff(best, metric=study.problem.metric).as_dict()
                # A file per attempt: a node that lost its connection may still write one later.
                name = f"{attempt.config}-s{seed}-f{fold}-{attempt.name}.parquet"
                written = save_held_out(folder / HELD_OUT / name, best, study.folds.ids[study.folds.held_out(fold)])
                records[-1] |= {"held_out": name, "digests": {name: written}}
                if study.evaluate and report.best_epoch is not None:
                    own_files = records[-1]["evaluated"] = evaluated[report.best_epoch]
                    records[-1]["digests"] |= {file: files[file] for file in own_files.values() if file in files}
        if records:
            yield records


def _evaluate(
    study: Study, attempt: Attempt, seed: int, fold: int, report: EpochReport, watchdog: Watchdog
) -> LedgerRecord:
    """Record the logits of a new best epoch's model on each evaluation split; return file names by split, and digests."""
    config = study.train_config(attempt.values, seed)
    runtime = Runtime.of(config.precision, study.device)
    files, digests = {}, {}
    for split in study.evaluate:
        rows = watchdog.watch(study.problem.split(split))
        recorded = record_all(report.model, rows, runtime, config.eval_batch_size)
        files[split] = f"{attempt.config}-s{seed}-f{fold}-{attempt.name}-e{report.epoch:03d}-{split}.parquet"
        path = Path(study.folder) / EVALUATED / files[split]
        digests[path.name] = save_held_out(path, recorded, np.arange(len(rows)))
    return {"evaluated": files, "digests": digests}


def _summary(reports: list[EpochReport], started: float) -> LedgerRecord:
    """Summarise a finished cell for the ledger; `started` is its start on the monotonic clock, in seconds."""
    last = reports[-1]
    best = next((r for r in reports if r.epoch == last.best_epoch), None)
    structure = getattr(getattr(last.model, "config", None), "structure", None)  # of a reduced network
    return {
        **({"structure": structure} if structure else {}),
        "ended": last.ended,
        "best_epoch": last.best_epoch,
        "score": best.score if best and last.ended != "diverged" else None,
        "exits": best.exits if best else {},
        "weights": best.weights if best else {},
        **({"majority": best.majority, "omega": best.omega} if best else {}),
        "last_score": last.score,
        "epochs": len(reports),
        "theta_updates": last.theta_updates,
        "best_theta_updates": best.last_stage_updates if best else None,
        "best_epochs": best.last_stage_epochs if best else None,
        "seconds": sum(r.seconds for r in reports),
        "wall_seconds": time.monotonic() - started,
    }


def _runtime(study: Study, attempt: Attempt) -> dict[str, object]:
    return Runtime.of(study.train_config(attempt.values, 0).precision, study.device).describe()


def _jsonable(values: LedgerRecord) -> LedgerRecord:
    """Replace non-finite numbers, which diverging runs report, by None: JSON cannot represent them."""

    def clean(value: Any) -> Any:
        if isinstance(value, float):
            return value if np.isfinite(value) else None
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(v) for v in value]
        return value

    return {name: clean(value) for name, value in values.items()}
