"""One configuration on all its cells, one after the other: what a trial does, without Ray.

Every epoch goes into the ledger before it is handed on; a cell's held-out logits at its best epoch go into a Parquet
file of its own.
"""

from __future__ import annotations

import dataclasses
import logging
import os
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
from leebert.errors import CheckpointError
from leebert.evaluate import HeldOut, replay_point
from leebert.problem import Problem
from leebert.runtime import Runtime, derive_seed, limited_threads
from leebert.train import EpochReport, train_epochs
from tune.ledger import Ledger, Record

#: Thresholds of the curve of score against layers that a cell reports.
TRADEOFF = 20


@dataclasses.dataclass(frozen=True)
class Study:
    """What all trials of a sweep share; sent to each process once.

    folder: the sweep's folder, which every node reaches. training: options that are not searched.
    cells: (seed, fold) in the fixed order of every trial. threads: CPUs of a trial; None leaves torch alone.
    """

    folder: str
    problem: Problem
    folds: Folds
    cells: tuple[tuple[int, int], ...]
    training: Mapping[str, Any]
    threads: int | None = None
    device: str = "auto"
    keep_checkpoints: bool = False

    def train_config(self, values: Mapping[str, Any], seed: int) -> TrainConfig:
        """The training configuration of a configuration's values and a seed."""
        return TrainConfig(**{**self.training, **values, "seed": seed})


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What the driver grants a trial: a configuration, an attempt number, and what is known of its cells already."""

    config: str
    values: Mapping[str, Any]
    attempt: int
    finished: Sequence[tuple[int, int]] = ()
    seen: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)  # "seed/fold" → epochs recorded


def run_attempt(study: Study, attempt: Attempt) -> Iterator[list[Record]]:
    """Train the cells that are left; yields the ledger's new records after each epoch (a cell's last with its end).

    A diverged cell ends the configuration: the cells after it would tell nothing that counts.
    """
    with limited_threads(study.threads):
        writer = Ledger(Path(study.folder) / "ledger").attempt_writer(attempt.config, attempt.attempt)
        try:
            for seed, fold in study.cells:
                if (seed, fold) in {tuple(cell) for cell in attempt.finished}:
                    continue
                diverged = False
                checkpoints = checkpoint_folder(study.folder, attempt.config, seed, fold)
                for records in _run_cell(study, attempt, seed, fold, checkpoints):
                    written = [writer.append(r) for r in records]
                    diverged = records[-1]["ended"] == "diverged"
                    if records[-1]["kind"] == "cell_end" and not diverged and not study.keep_checkpoints:
                        checkpoints.clear()
                    yield written
                if diverged:
                    return
        finally:
            writer.close()


def checkpoint_folder(folder: str, config: str, seed: int, fold: int) -> Checkpoints:
    """Where a cell of the sweep in `folder` keeps its checkpoint while it runs."""
    return Checkpoints(Path(folder) / "checkpoints" / f"{config}-s{seed}-f{fold}")


def train_cell(
    study: Study, values: Mapping[str, Any], seed: int, fold: int, checkpoints: Checkpoints | None = None
) -> Iterator[EpochReport]:
    """Train one cell on its fold's rows and score it on the rows held out."""
    config = study.train_config(values, seed)
    runtime = Runtime.of(config.precision, study.device)
    rows = study.problem.rows()
    torch.manual_seed(derive_seed(seed, fold, "init"))
    yield from train_epochs(
        study.problem.model(config),
        RowSubset(rows, study.folds.train(fold)),
        config,
        held_out=RowSubset(rows, study.folds.held_out(fold)),
        metric=study.problem.metric,
        runtime=runtime,
        seed=(seed, fold),
        checkpoints=checkpoints,
        identity={"folds": study.folds.digest},
    )


def _from_checkpoint_or_anew(
    study: Study, attempt: Attempt, seed: int, fold: int, checkpoints: Checkpoints
) -> Iterator[EpochReport]:
    """A damaged checkpoint costs its cell's epochs, not the configuration: the cell starts again, alike."""
    try:
        checkpoints.load()
    except CheckpointError as error:
        logging.getLogger(__name__).warning("%s: the cell is trained anew", error)
        checkpoints.clear()
    yield from train_cell(study, attempt.values, seed, fold, checkpoints)


def _run_cell(study: Study, attempt: Attempt, seed: int, fold: int, checkpoints: Checkpoints) -> Iterator[list[Record]]:
    folder = Path(study.folder)
    where = {"config": attempt.config, "attempt": attempt.attempt, "seed": seed, "fold": fold}
    seen = set(attempt.seen.get(f"{seed}/{fold}", ()))
    started, reports, best = time.time(), [], None
    for report in _from_checkpoint_or_anew(study, attempt, seed, fold, checkpoints):
        reports.append(report)
        best = report.held_out or best
        records: list[Record] = []
        if report.epoch not in seen:
            records.append({"kind": "epoch", **where, **_jsonable(report.plain())})
        if report.ended:
            records.append(
                {"kind": "cell_end", **where, **_summary(reports, started), "runtime": _runtime(study, attempt)}
            )
            if best is not None and report.ended != "diverged":
                records[-1]["tradeoff"] = _tradeoff(best, study.problem.metric)
                save_held_out(
                    held_out_path(folder, attempt.config, seed, fold), best, study.folds.ids[study.folds.held_out(fold)]
                )
        if records:
            yield records


def _summary(reports: list[EpochReport], started: float) -> Record:
    last = reports[-1]
    best = next((r for r in reports if r.epoch == last.best_epoch), None)
    return {
        "ended": last.ended,
        "best_epoch": last.best_epoch,
        "score": best.score if best and last.ended != "diverged" else None,
        "exits": best.exits if best else {},
        "weights": best.weights if best else {},
        "last_score": last.score,
        "epochs": len(reports),
        "theta_updates": last.theta_updates,
        "best_theta_updates": best.theta_updates if best else None,
        "seconds": sum(r.seconds for r in reports),
        "wall_seconds": time.time() - started,
    }


def _runtime(study: Study, attempt: Attempt) -> dict[str, object]:
    return Runtime.of(study.train_config(attempt.values, 0).precision, study.device).describe()


def _tradeoff(held_out: HeldOut, metric: str) -> dict[str, list[float]]:
    """Mean layers and score under the entropy exit at fixed thresholds, the same for every cell and configuration."""
    points = [replay_point(held_out, metric, "normalised_entropy", (i + 1) / TRADEOFF) for i in range(TRADEOFF)]
    return {"layers": [p.layers for p in points], "score": [p.measures["score"] for p in points]}


def _jsonable(values: Record) -> Record:
    """Non-finite numbers become None: JSON has no word for them, and a report of a diverging run may hold some."""

    def clean(value: Any) -> Any:
        if isinstance(value, float):
            return value if np.isfinite(value) else None
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(v) for v in value]
        return value

    return clean(values)


def held_out_path(folder: Path, config: str, seed: int, fold: int) -> Path:
    """Where a cell's held-out logits lie."""
    return folder / "cells" / f"{config}-s{seed}-f{fold}.parquet"


def save_held_out(path: Path, held_out: HeldOut, row_ids: np.ndarray) -> None:
    """Write row id, label and M×K logits per row, atomically; the shape stands in the file's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    m, _, k = held_out.logits.shape
    flat = pa.array(held_out.logits.transpose(1, 0, 2).reshape(-1), pa.float32())
    table = pa.table(
        {
            "row": pa.array(row_ids, pa.int64()),
            "label": pa.array(held_out.labels, pa.int64()),
            "logits": pa.FixedSizeListArray.from_arrays(flat, m * k),
        }
    ).replace_schema_metadata({"exits": str(m), "classes": str(k)})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    pq.write_table(table, temporary, compression="zstd")
    temporary.replace(path)


def load_held_out(path: Path) -> tuple[HeldOut, np.ndarray]:
    """A cell's held-out logits and the row ids that they belong to."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    m, k = (int(table.schema.metadata[key]) for key in (b"exits", b"classes"))
    flat = table["logits"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    logits = np.ascontiguousarray(flat.reshape(-1, m, k).transpose(1, 0, 2))
    return HeldOut(logits, table["label"].to_numpy()), table["row"].to_numpy()
