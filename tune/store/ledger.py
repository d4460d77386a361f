"""The ledger of a sweep, its append-only event log, and the only module that touches the ledger's files.

A ledger is a folder of append-only files with one writer each. `driver/<number>/` holds the decisions of one driver (each
session of a sweep has its own number, see `tune.store.lease`). `<configuration>/<attempt>-<driver>/` holds the results of
the process that trains that attempt, written before Ray sees them. Files are numbered segments of at most :data:`SEGMENT`
records and never change once the next one exists. A line is `crc32 json`; a torn last line of a segment is ignored, damage
anywhere else is an error.

Records have an identity (configuration, seed, fold, epoch), so reading one twice changes nothing. A process that takes
over records how many of its predecessors' records count (`fences`): a driver in its first record, for earlier drivers, and
in each grant, for the configuration's earlier attempts. Anything that a superseded writer adds later is ignored. If some of
the drivers' records are lost, the intact ones are read and :attr:`SweepState.missing` lists the losses
(`tune.store.gaps`).
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import errno
import gc
import itertools
import json
import os
import re
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from leebert.errors import StorageError, SweepError
from leebert.files import fsync_folder, parse_json
from tune.store import gaps
from tune.store.history import Cell, CellState, ConfigState, Configuration, EpochScore, History, Placement

SEGMENT = 1000
DRIVER = "driver"
KINDS = (
    "sweep",
    "resume",
    "suggest",
    "grant",
    "prune",
    "fail",
    "reopen",
    "complete",
    "end",
    "begin",
    "epoch",
    "cell_end",
    "checkpoint",
)
LedgerRecord = dict[str, Any]


def encode(record: Mapping[str, Any]) -> bytes:
    """Encode a record as one line: the CRC-32 of the JSON text in hexadecimal, a space, the text."""
    text = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def decode(line: bytes) -> LedgerRecord:
    """Decode a line without its line end. ValueError if the checksum does not match."""
    checksum, _, text = line.partition(b" ")
    if len(checksum) != 8 or int(checksum, 16) != zlib.crc32(text):
        raise ValueError("wrong checksum")
    record: LedgerRecord = parse_json(text)
    return record


class SegmentWriter:
    """Appends records to one writer's segments."""

    def __init__(self, folder: Path) -> None:
        self.file: Any = None
        self.folder = folder
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        existing = sorted(folder.glob("*.jsonl"))
        # Never append to a file of an earlier process: its last line may be torn.
        self.segment = int(existing[-1].stem) + 1 if existing else 0
        self.seq = 1 + max((record["seq"] for path in existing for record in _read_segment(path)), default=-1)
        self.count = 0

    def append(self, *records: Mapping[str, Any], sync: bool = True) -> list[LedgerRecord]:
        """Write records.

        Args:
            records: The records.
            sync: Whether to fsync before returning. Otherwise the records survive the end of this process, but a loss of
                power only after a later call with `sync`.

        Returns:
            The records, each with its `seq` (number within this writer) and `time` (Unix seconds).

        Raises:
            StorageError: If the records cannot be written. Nothing can be appended after that, as the last line may be
                torn.
        """
        written_at = round(time.time(), 6)  # in one millisecond, two trials may report
        full = [{"seq": seq, "time": written_at, **record} for seq, record in enumerate(records, start=self.seq)]
        with _writing(self.folder):
            try:
                for record in full:
                    if self.file is None or self.count == SEGMENT:
                        self._next_segment()
                    line = encode(record)
                    if self.file.write(line) < len(line):  # on an almost full disk
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    self.count += 1
                if sync:
                    os.fsync(self.file.fileno())
            except OSError:
                self.close()
                self.count = -1
                raise
        self.seq += len(full)
        return full

    def _next_segment(self) -> None:
        if self.count < 0:
            raise OSError("an earlier record could not be written")
        if self.file is not None:
            os.fsync(self.file.fileno())
            self.close()
        self.file = open(self.folder / f"{self.segment:08d}.jsonl", "xb", buffering=0)  # noqa: SIM115
        fsync_folder(self.folder)
        self.segment, self.count = self.segment + 1, 0

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    def __del__(self) -> None:
        self.close()


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{folder}: the ledger can't be written: {error.strerror or error}") from None


def _read_segment(path: Path, *, epochs: bool = True) -> Iterator[LedgerRecord]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:  # such as a folder
        raise SweepError(f"{path} can't be read: {error.strerror or error}") from None
    for number, line in enumerate(lines, start=1):
        if not line or (not epochs and b'"kind":"epoch"' in line):
            continue
        try:
            record = decode(line)
            if not _is_record(record):
                raise ValueError("not a record")
        except ValueError as error:
            if number == len(lines) or (number == len(lines) - 1 and not lines[-1]):
                return  # the tail of a writer that was killed
            raise SweepError(f"{path}, line {number}: {error}; the ledger was damaged after it was written") from None
        yield record


def _is_record(value: Any) -> bool:
    """Return whether a line has the keys of every record, with the right types."""
    if not isinstance(value, dict) or not isinstance(value.get("fences", {}), dict):
        return False
    numbers = (value.get("seq"), value.get("time"), *value.get("fences", {}).values())
    return isinstance(value.get("kind"), str) and all(isinstance(n, int | float) for n in numbers)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Disable garbage collection, which would scan all records again and again: they have no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Ledger:
    """A sweep's ledger: reads all records and creates writers."""

    def __init__(
        self, folder: str | Path, values_of: Callable[[str], Mapping[str, Any] | None] = lambda config: None
    ) -> None:
        """Open a ledger.

        Args:
            folder: Its folder.
            values_of: Finds a configuration's values by its id, if their record was lost; None if unknown.
        """
        self.folder, self.values_of = Path(folder), values_of

    def driver_writer(self, driver: int) -> SegmentWriter:
        """Return a writer for the decisions of the driver with this number."""
        return SegmentWriter(self.folder / DRIVER / f"{driver:04d}")

    def attempt_writer(self, config: str, attempt: str) -> SegmentWriter:
        """Return a writer for the process that trains an attempt, by :func:`attempt_name`."""
        return SegmentWriter(self.folder / config / attempt)

    def records_of(self, config: str, attempt: str) -> Iterator[LedgerRecord]:
        """Read the records of one attempt, in order."""
        return self._read(self.folder / config / attempt)

    def driver_fences(self) -> dict[str, int]:
        """Return how many records of each driver count, for the first record of a driver that takes over."""
        return dict(self._decisions().fences)

    def recovered(self) -> list[LedgerRecord]:
        """Return lost decisions that the attempts' own records hold: a driver that takes over writes them again."""
        return list(self._decisions().recovered)

    def _decisions(self) -> gaps.Decisions:
        """Read the drivers' records in order, without those written after another driver had taken over."""
        if not (self.folder / DRIVER).is_dir():
            raise SweepError(f"{self.folder} is not a ledger: it has no folder {DRIVER}")
        # Before the drivers' records: an attempt's folder is made after its grant was written.
        attempts = self._attempts()
        folders = sorted(path for path in (self.folder / DRIVER).iterdir() if path.is_dir())
        drivers = {folder.name: list(self._read(folder)) for folder in folders}
        granted = {
            (str(record.get("config")), attempt_name(record))
            for records in drivers.values()
            for record in records
            if record["kind"] == "grant" and all(isinstance(record.get(key, 1), int) for key in ("attempt", "driver"))
        }
        orphans = [
            gaps.Orphan(config, name, next(self.records_of(config, name), {}))
            for config, name in attempts
            if (config, name) not in granted
        ]
        return gaps.restore(drivers, [orphan for orphan in orphans if orphan.begin], self.values_of)

    def _attempts(self) -> list[tuple[str, str]]:
        """Return configuration and name of every attempt that has a folder."""
        return [
            (config.name, attempt)
            for config in sorted(self.folder.iterdir())
            if config.name != DRIVER and config.is_dir()
            for attempt in sorted(os.listdir(config))
            if gaps.is_attempt(attempt)
        ]

    def in_order(self) -> list[LedgerRecord]:
        """Return every record, in a possible order of events.

        Clocks of several hosts disagree, so times are only trusted within bounds: the driver's records keep their order;
        an attempt's records keep theirs, between its grant and the driver's next decision on its configuration.
        """
        decisions = [record for _, record in self._decisions().records]
        times = list(itertools.accumulate((record["time"] for record in decisions), max))
        # Sorted by the decision that a record follows, then by time; a decision comes before what follows it.
        merged: list[tuple[int, float, int, LedgerRecord]] = [
            (n, -1.0, 0, record) for n, record in enumerate(decisions)
        ]
        following: dict[str, int] = {}
        for n, decision in reversed(list(enumerate(decisions))):
            if "config" not in decision:
                continue
            config, latest = decision["config"], 0.0
            if decision["kind"] == "grant":
                last = following.get(config, len(decisions)) - 1
                for record in self.records_of(config, attempt_name(decision)):
                    latest = max(latest, record["time"])
                    place = min(max(bisect.bisect_right(times, latest) - 1, n), last)
                    merged.append((place, latest, record["seq"], record))
            following[config] = n
        return [record for *_, record in sorted(merged, key=lambda m: m[:3])]

    def fences(self) -> dict[str, dict[int, int]]:
        """Return the fences of the newest grants: how many records of superseded attempts count."""
        grants = (record for _, record in self._decisions().records if record["kind"] == "grant")
        return {r["config"]: {int(a): n for a, n in r["fences"].items()} for r in grants}

    def _read(self, folder: Path) -> Iterator[LedgerRecord]:
        for path in self._segments(folder):
            yield from _read_segment(path)

    def _segments(self, folder: Path) -> list[Path]:
        return sorted(folder.glob("*.jsonl"))

    def read(self, *, epochs: bool = True) -> SweepState:
        """Read the state of the sweep from all files; warns of lost records.

        Args:
            epochs: Whether to decode the epochs' records, the largest part of a ledger. Scores of finished runs do not
                need them.

        Raises:
            SweepError: The ledger is missing or damaged.
        """
        state = SweepState()
        with _uncollected():
            decisions = self._decisions()
            state.missing = decisions.missing
            for _, record in decisions.records:
                state.apply(record)
            for config, attempts in list(state.attempts.items()):
                for attempt in attempts.values():
                    for path in self._segments(self.folder / config / attempt):
                        for record in _read_segment(path, epochs=epochs):
                            state.apply(record)
        if state.missing:
            warnings.warn(f"{self.folder}: {'; '.join(state.missing)}; `resume` trains the missing runs", stacklevel=1)
        return state


def attempt_name(grant: Mapping[str, Any]) -> str:
    """Return the folder name of an attempt, for its records and its checkpoints.

    It includes the driver's number, because a superseded driver may grant the same attempt again before it notices.
    """
    return f"{grant['attempt']:04d}-{grant.get('driver', 1):04d}"


@dataclasses.dataclass
class SweepState:
    """The state of a sweep, built by applying its records in any order that keeps each writer's own.

    Values that it returns (histories, records) never change later.
    """

    sweep: LedgerRecord | None = None
    configs: dict[str, Configuration] = dataclasses.field(default_factory=dict)
    indices: dict[str, int] = dataclasses.field(default_factory=dict)
    attempts: dict[str, dict[int, str]] = dataclasses.field(default_factory=dict)  # number → name, by configuration
    placements: dict[tuple[str, int], Placement] = dataclasses.field(
        default_factory=dict
    )  # by configuration and attempt
    fences: dict[str, dict[int, int]] = dataclasses.field(default_factory=dict)
    epochs: dict[tuple[str, int, int], dict[int, LedgerRecord]] = dataclasses.field(
        default_factory=dict
    )  # by cell, then by epoch
    fold_epochs: int = 0
    digests: dict[tuple[str, int, int], set[str]] = dataclasses.field(default_factory=dict)  # of a cell's checkpoints
    evaluated: dict[tuple[str, int, int], dict[int, dict[str, str]]] = dataclasses.field(
        default_factory=dict
    )  # by cell, then by epoch: the files of evaluation splits
    files: dict[tuple[str, int, int], dict[str, str]] = dataclasses.field(
        default_factory=dict
    )  # their SHA-256, by name
    cells: dict[tuple[str, int, int], LedgerRecord] = dataclasses.field(default_factory=dict)
    # Runs that are repeated, as their files were damaged: the last attempt whose end record no longer counts, and that
    # record.
    voided: dict[tuple[str, int, int], int] = dataclasses.field(default_factory=dict)
    replaced: dict[tuple[str, int, int], LedgerRecord] = dataclasses.field(default_factory=dict)
    before_extension: dict[str, set[tuple[int, int]]] = dataclasses.field(
        default_factory=dict
    )  # runs requested before the sweep was extended
    cells_of: dict[str, list[LedgerRecord]] = dataclasses.field(default_factory=dict)  # the same by configuration
    granted: dict[str, float] = dataclasses.field(default_factory=dict)  # time of a configuration's newest grant
    last_of: dict[str, LedgerRecord] = dataclasses.field(default_factory=dict)  # a configuration's newest record
    epoch_seconds: float = 0.0
    elapsed: float = 0.0  # seconds of sessions that are over, killed ones up to their last record
    session: tuple[float, float] | None = None  # times of the first and last record of the current session
    # The history when a running configuration's newest record was applied (in order): a pruner that decides on that record
    # again, after a lost node, must decide as before.
    decision_histories: dict[str, History] = dataclasses.field(default_factory=dict)
    pruned: dict[str, LedgerRecord] = dataclasses.field(default_factory=dict)
    failures: dict[str, list[LedgerRecord]] = dataclasses.field(default_factory=dict)
    end: LedgerRecord | None = None
    missing: tuple[str, ...] = ()  # a sentence on each loss of records
    # For processes that run for days: keep only the numbers of a finished run's epochs here, and the scores in the
    # history, a twentieth of the memory.
    slim: bool = False

    def history(self) -> History:
        """Return the configurations in the order of their suggestion."""
        return tuple(self.configs.values())

    def status(self, driven: bool) -> str:
        """Return `running` while a driver works, else how the sweep ended: `finished`, `stopped`, `failed`, `died`."""
        return "running" if driven else str((self.end or {}).get("status", "died"))

    def recorded_epochs(self, config: str, seed: int, fold: int) -> set[int]:
        """Return the recorded epochs of a run, from 0.

        Args:
            config: The configuration.
            seed: Seed of the run.
            fold: Validation fold of the run.
        """
        return set(self.epochs.get((config, seed, fold), ()))

    def last_attempt(self, config: str) -> int:
        """Return the number of a configuration's newest attempt, 0 before the first."""
        return max(self.attempts.get(config, ()), default=0)

    def counts(self, record: LedgerRecord) -> bool:
        """Return whether a trial's record was written before its attempt was superseded."""
        fence = self.fences.get(record["config"], {}).get(record["attempt"])
        return fence is None or record["seq"] < fence

    def apply(self, record: LedgerRecord) -> bool:
        """Apply a record and return whether it is new. SweepError for a record that no sweep can have written."""
        try:
            new = record["kind"] in KINDS and bool(getattr(self, f"_{record['kind']}")(record))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SweepError(
                f"the ledger holds a record that can't be understood ({error!r}): {str(record)[:300]}"
            ) from error
        if new and self.session:
            self.session = (self.session[0], max(self.session[1], record["time"]))
        return new

    def apply_in_order(self, record: LedgerRecord) -> bool:
        """Apply records in the order of events; keeps `decision_histories` in addition to :meth:`apply`."""
        if not self.apply(record):
            return False
        config = record.get("config")
        if config is not None and record["kind"] in ("epoch", "cell_end"):
            self.decision_histories[config] = self.history()
        elif config is not None and self.configs[config].state != "running":
            self.decision_histories.pop(config, None)
        return True

    # One method per kind of record. The driver's:

    def _sweep(self, r: LedgerRecord) -> bool:
        self.sweep, fresh = r, self.sweep is None
        self._begin_session(r)
        return fresh

    def _resume(self, r: LedgerRecord) -> bool:
        self._begin_session(r)
        return True

    def _begin_session(self, r: LedgerRecord) -> None:
        self.end = None
        if self.session:  # the last session was killed before it recorded its length
            self.elapsed += self.session[1] - self.session[0]
        self.session = (r["time"], r["time"])

    def _suggest(self, r: LedgerRecord) -> bool:
        if r["config"] in self.configs:
            return False
        if not re.fullmatch(r"\w[\w.-]*", r["config"]) or r["config"] == DRIVER:
            raise SweepError(f"the ledger names a configuration {r['config']!r}, which can't be a folder's name")
        self.configs[r["config"]] = Configuration(r["config"], r["values"])
        self.indices[r["config"]] = r["index"]
        return True

    def _grant(self, r: LedgerRecord) -> bool:
        config, attempt = r["config"], r["attempt"]
        if attempt <= self.last_attempt(config):
            return False
        self.attempts.setdefault(config, {})[attempt] = attempt_name(r)
        self.granted[config] = float(r.get("time", 0.0))
        if "accumulate" in r:
            self.placements[config, attempt] = Placement(r["alone"], r["accumulate"])
        self.fences[config] = {int(a): n for a, n in r["fences"].items()}
        self._set(config, state="running")
        return True

    def _prune(self, r: LedgerRecord) -> bool:
        fresh = r["config"] not in self.pruned
        if fresh:
            self.pruned[r["config"]] = r
        self._set(r["config"], state="pruned")
        return fresh

    def _fail(self, r: LedgerRecord) -> bool:
        failures = self.failures.setdefault(r["config"], [])
        if any(k["attempt"] == r["attempt"] and (k["final"] or not r["final"]) for k in failures):
            return False
        failures.append(r)
        if r["final"]:
            self._set(r["config"], state="failed")
        return True

    def _reopen(self, r: LedgerRecord) -> bool:
        self.before_extension[r["config"]] = {(int(seed), int(fold)) for seed, fold in r.get("cells", ())}
        repair = r.get("repair", {"cells": ()})
        for seed, fold in repair["cells"]:
            self._void((r["config"], int(seed), int(fold)), int(repair["attempt"]))
        fresh = self.configs[r["config"]].state != "running"
        self._set(r["config"], state="running")
        return fresh

    def _void(self, key: tuple[str, int, int], attempt: int) -> None:
        """Discard a run's end record; only one of a later attempt counts."""
        self.voided[key] = attempt
        config, seed, fold = key
        if (old := self.cells.pop(key, None)) is not None:
            self.replaced[key] = old
            self.cells_of[config].remove(old)
            run = {"config": config, "seed": seed, "fold": fold}
            self._cell(run, lambda cell: Cell(seed, fold, "running", cell.epochs))

    def _complete(self, r: LedgerRecord) -> bool:
        fresh = self.configs[r["config"]].state != "complete"
        self._set(r["config"], state="complete")
        return fresh

    def _end(self, r: LedgerRecord) -> bool:
        self.end = r
        self.elapsed += r.get("elapsed", 0.0)
        self.session = None
        return True

    # The trials':

    def _begin(self, r: LedgerRecord) -> bool:
        """Ignore the copy of the attempt's grant, which is only used if the grant itself is lost."""
        return False

    def _checkpoint(self, r: LedgerRecord) -> bool:
        """Record the new checkpoint of a recorded epoch that was repeated because its checkpoint was damaged."""
        if self.counts(r):
            cell = (r["config"], r["seed"], r["fold"])
            self.digests.setdefault(cell, set()).add(r["checkpoint"])
            if "evaluated" in r:
                self.evaluated.setdefault(cell, {})[r["epoch"]] = r["evaluated"]
                self.files.setdefault(cell, {}).update(r.get("digests", {}))
        return False

    def _epoch(self, r: LedgerRecord) -> bool:
        cell = self.epochs.setdefault((r["config"], r["seed"], r["fold"]), {})
        if r["epoch"] in cell or not self.counts(r):
            return False
        if r.get("checkpoint"):
            self._checkpoint(r)
        cell[r["epoch"]] = r
        self.fold_epochs += 1
        self.epoch_seconds += r["seconds"]
        self.last_of[r["config"]] = r
        if r["score"] is not None:
            score = EpochScore(r["epoch"], r["score"], tuple(r["exits"].get("score", ())), _above(r))
            self._cell(r, lambda c: Cell(c.seed, c.fold, c.state, (*c.epochs, score), c.chosen))
        else:
            self._cell(r, lambda cell: cell)
        return True

    def _cell_end(self, r: LedgerRecord) -> bool:
        key = (r["config"], r["seed"], r["fold"])
        if key in self.cells or not self.counts(r):
            return False
        if r["attempt"] <= self.voided.get(key, 0):
            self.replaced[key] = r
            return False
        self.cells[key] = r
        if self.slim:
            self.epochs[key] = {epoch: {"attempt": r["attempt"]} for epoch in self.epochs.get(key, ())}
        self.last_of[r["config"]] = r
        self.cells_of.setdefault(r["config"], []).append(r)
        state: CellState = "diverged" if r["ended"] == "diverged" else "finished"
        chosen = None
        if r.get("score") is not None and r.get("best_epoch") is not None:
            chosen = EpochScore(r["best_epoch"], r["score"], tuple(r["exits"].get("score", ())))
        self._cell(r, lambda cell: dataclasses.replace(cell, state=state, chosen=chosen))
        return True

    # Once per epoch: constructors take a quarter of the time of `dataclasses.replace`.

    def _cell(self, r: LedgerRecord, change: Callable[[Cell], Cell]) -> None:
        config = self.configs[r["config"]]
        at = next((i for i, c in enumerate(config.cells) if (c.seed, c.fold) == (r["seed"], r["fold"])), None)
        cells = list(config.cells)
        if at is None:
            cells.append(change(Cell(r["seed"], r["fold"])))
        else:
            cells[at] = change(cells[at])
        self.configs[r["config"]] = Configuration(config.id, config.values, config.state, tuple(cells))

    def _set(self, config: str, *, state: ConfigState) -> None:
        self.configs[config] = dataclasses.replace(self.configs[config], state=state)


def _above(r: LedgerRecord) -> bool:
    """Return whether an exit scores above the majority class; older ledgers only record which exits are collapsed."""
    if r.get("majority"):
        return bool(max(r["majority"]["margins"]) > 0)
    exits = r["exits"].get("score", ())
    return not exits or len(r.get("collapsed", ())) < len(exits)
