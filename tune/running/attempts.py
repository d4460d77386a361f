"""Attempts at configurations: how and where each runs, the records that it need not repeat, and its checkpoints."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from leebert.config import TrainConfig
from tune.running.crossval import Attempt, CellRecord, checkpoint_folder
from tune.running.driver_records import DriverRecords
from tune.running.failures import placement
from tune.store.history import Placement
from tune.store.ledger import LedgerRecord


class Frame(Protocol):
    """The part of a :class:`tune.running.crossval.Study` that the driver reads."""

    @property
    def folder(self) -> str: ...
    @property
    def cells(self) -> tuple[tuple[int, int], ...]: ...
    @property
    def keep_checkpoints(self) -> bool: ...
    def train_config(self, values: Mapping[str, Any], seed: int) -> TrainConfig: ...


class Attempts:
    """Grants attempts, and removes checkpoints that no attempt continues from."""

    def __init__(self, study: Frame, records: DriverRecords, gpus: float) -> None:
        """Take what all trials share, the driver's records, and the GPUs of one trial."""
        self._study, self._records, self._gpus = study, records, gpus

    def grant(self, config: str) -> Attempt:
        """Record a new attempt of a configuration, fencing off its earlier attempts, and return it."""
        records, state = self._records, self._records.state
        number, earlier = state.last_attempt(config) + 1, state.attempts.get(config, {})
        fenced = state.fences.get(config, {})
        fences = {str(n): fenced.get(n, count) for n, count in records.collect(config).items()}
        finished = [(s, f) for s, f in self._study.cells if (config, s, f) in state.cells]
        self.remove_checkpoints(config, finished)  # the last attempt may have died after a cell's end
        place = self.placement(state.failures.get(config, []), config) or Placement()
        placed = dataclasses.asdict(place) if place != Placement() else {}
        names = [name for _, name in sorted(earlier.items())]
        records.write(
            {"kind": "grant", "config": config, "attempt": number, "driver": records.number, "fences": fences, **placed}
        )
        cells = {
            f"{s}/{f}": CellRecord(
                sorted(state.recorded_epochs(config, s, f)),
                sorted(state.digests.get((config, s, f), ())),
                sorted(state.evaluated.get((config, s, f), {}).items()),
                dict(state.files.get((config, s, f), {})),
            )
            for s, f in self._study.cells
            if state.recorded_epochs(config, s, f)
        }
        values, index = state.configs[config].values, state.indices[config]
        return Attempt(config, values, number, records.number, finished, cells, names, place, index, fences)

    def placement(self, failures: list[LedgerRecord], config: str) -> Placement | None:
        """Choose where and in how many micro-batches to run after these failures; None if nothing remains to try."""
        if not failures:
            return Placement()
        training = self._study.train_config(self._records.state.configs[config].values, 0)
        return placement(failures, training.batch_size // training.accumulate, self._gpus)

    def remove_checkpoints(self, config: str, cells: Iterable[tuple[int, int]], *, kept_ones: bool = False) -> None:
        """Remove the checkpoints of some runs.

        Args:
            config: The configuration.
            cells: (seed, fold) of each run.
            kept_ones: Remove them even if the space keeps checkpoints.
        """
        if kept_ones or not self._study.keep_checkpoints:
            for seed, fold in cells:
                shutil.rmtree(checkpoint_folder(self._study.folder, config, seed, fold), ignore_errors=True)

    def remove_strays(self) -> None:
        """Remove checkpoints of finished configurations: a trial that was fenced off may still have written some."""
        if not self._study.keep_checkpoints:
            for folder in (Path(self._study.folder) / "checkpoints").glob("*-s*-f*"):
                configuration = self._records.state.configs.get(folder.name.rpartition("-s")[0])
                if configuration is None or configuration.state in ("complete", "pruned"):
                    shutil.rmtree(folder, ignore_errors=True)
