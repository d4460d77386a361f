"""The driver of a sweep: it decides what runs next, writes each decision to the ledger and feeds MLflow from the ledger.

:class:`Driver` does not depend on Ray; `tune.running.ray_adapters` plugs it into Ray Tune.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from leebert.config import TrainConfig
from leebert.errors import LeaseError, StorageError
from leebert.majority import single_class
from leebert.train import NEGATIVE
from tune.pruners import Pruner
from tune.running.crossval import Attempt, CellRecord, checkpoint_folder, hang_file
from tune.running.failures import HOPELESS, MOST, RETRIES, STOPPING, UNCOUNTED, Failure, placement
from tune.searchers import Searcher
from tune.space import Budget
from tune.store.curves import CellCurves
from tune.store.history import Configuration, Placement, describe
from tune.store.ledger import LedgerRecord, SweepState
from tune.tracking.feed import Listener, events

EndStatus = Literal["finished", "stopped", "failed"]


class Frame(Protocol):
    """The part of a :class:`tune.running.crossval.Study` that the driver reads."""

    @property
    def folder(self) -> str: ...
    @property
    def cells(self) -> tuple[tuple[int, int], ...]: ...
    @property
    def keep_checkpoints(self) -> bool: ...
    def train_config(self, values: Mapping[str, Any], seed: int) -> TrainConfig: ...


class Appender(Protocol):
    """Append the driver's records, and return them with sequence numbers and times."""

    def append(self, *records: Mapping[str, Any], sync: bool = True) -> list[LedgerRecord]: ...
    def close(self) -> None: ...


class Records(Protocol):
    """The part of a ledger that the driver reads and writes; a simulation implements it without files."""

    def read(self) -> SweepState: ...
    def driver_writer(self, driver: int) -> Appender: ...
    def records_of(self, config: str, attempt: str) -> Iterable[LedgerRecord]: ...


class Driver:
    """Make the decisions of a sweep, each written to the ledger before it takes effect.

    Attributes:
        running: Ray's trial id → id of the configuration that it runs, or that is queued for resources.
        started_trials: Returns the trials of `running` that have resources; a simulation starts all of them.
        waiting: Ids of the configurations that run next, before the searcher suggests new ones.
        halted: Why no further configuration could succeed; None while one may.
        interrupted: Whether a signal arrived; `signal` is its number.
    """

    def __init__(
        self,
        study: Frame,
        ledger: Records,
        searcher: Searcher,
        pruner: Pruner,
        *,
        config_id: Callable[[dict[str, Any]], str],
        number: int = 1,
        budget: Budget | None = None,
        gpus: float = 0.0,
        listener: Listener | None = None,
        say: Callable[[str], None] = print,
        stop_requested: Callable[[], bool] = lambda: False,
        may_decide: Callable[[], None] = lambda: None,
        state: SweepState | None = None,
        repair: Collection[tuple[str, int, int]] = (),
    ) -> None:
        """Open the driver's part of the ledger and queue the configurations that are unfinished.

        Args:
            study: What all trials share.
            ledger: The sweep's ledger.
            searcher: Suggests configurations.
            pruner: Decides after each epoch whether a configuration continues.
            config_id: Returns the id of a configuration's values.
            number: The number of this driver's lease (`tune.store.lease`).
            budget: When to stop; without limits by default.
            gpus: GPUs of one trial.
            listener: Receives the events that MLflow shows.
            say: Prints one line of progress.
            stop_requested: Whether `leebert-tune stop` was called.
            may_decide: Raises LeaseError once another driver has taken over.
            state: The ledger's state that the listener has received (:func:`tune.tracking.feed.replay`); read from the ledger if None.
            repair: Finished cells (configuration, seed, fold) to train again, since their files are damaged.
        """
        self.study, self.ledger, self.searcher, self.pruner = study, ledger, searcher, pruner
        self.config_id, self.number, self.budget = config_id, number, budget or Budget()
        self.gpus, self.listener, self.say = gpus, listener, say
        self.curve_of = CellCurves(Path(study.folder), say)
        self.stop_requested, self.may_decide = stop_requested, may_decide
        self.state = state or ledger.read()
        self.state.slim = True
        self.writer = ledger.driver_writer(number)
        self.started, self._clock = time.time(), time.monotonic()
        self.halted: str | None = None
        self.interrupted = False
        self.signal: int | None = None
        self.running: dict[str, str] = {}
        self.started_trials: Callable[[], Collection[str]] = self.running.keys
        self.exhausted = False
        self._stop_reason: str | None = None
        self._collapsed: set[int] = set()
        self._negative = False
        self.waiting: list[str] = []
        self._failed_first: set[str] = set()  # failed for good in this session, and in none before
        self._queue_unfinished(self._within_budget(repair))

    def _queue_unfinished(self, repair: Collection[tuple[str, int, int]]) -> None:
        """Queue configurations to repair, with new seeds, interrupted, or failed for a reason that may be gone."""
        for configuration in self.state.history():
            repeated = [(seed, fold) for config, seed, fold in sorted(repair) if config == configuration.id]
            if repeated:
                self._begin_repair(configuration, repeated)
            elif configuration.state == "complete" and not set(self.study.cells) <= _finished(configuration):
                # The sweep got more seeds. The pruner has already decided on the finished cells.
                finished = sorted(_finished(configuration))
                self.record({"kind": "reopen", "config": configuration.id, "cells": finished})
                self.waiting.append(configuration.id)
            elif self._may_retry(configuration) or (
                self.state.configs[configuration.id].state == "running" and self._conclude(configuration.id)
            ):
                self.waiting.append(configuration.id)

    def _within_budget(self, repair: Collection[tuple[str, int, int]]) -> Collection[tuple[str, int, int]]:
        """Return the cells to repair; none if the budget is used up, since they would stay unfinished."""
        if not repair or (used := self._budget_used()) is None:
            return repair
        self.say(f"nothing is repaired, since {used}: raise it (--set budget.KEY=VALUE) and run the same command again")
        return ()

    def _begin_repair(self, configuration: Configuration, cells: list[tuple[int, int]]) -> None:
        """Reopen a configuration to train some finished cells from the beginning, without the pruner."""
        config = configuration.id
        # A kept checkpoint is of the last epoch; the logits of the best epoch cannot be recomputed from it.
        for seed, fold in cells:
            shutil.rmtree(checkpoint_folder(self.study.folder, config, seed, fold), ignore_errors=True)
        void = {"attempt": self.state.last_attempt(config), "cells": cells}
        self.record({"kind": "reopen", "config": config, "cells": sorted(_finished(configuration)), "repair": void})
        self.waiting.append(config)

    def _may_retry(self, configuration: Configuration) -> bool:
        """Return whether a configuration failed for a reason that may be gone: any but divergence."""
        failures = self.state.failures.get(configuration.id, [])
        return configuration.state == "failed" and bool(failures) and failures[-1]["reason"] != "diverged"

    # Granting attempts.

    def next_attempt(self, trial: str) -> Attempt | None:
        """Grant the next attempt: configurations that began earlier come first, then the searcher's suggestions.

        Args:
            trial: Ray's id of the trial that will run it.

        Returns:
            The attempt, or None if nothing remains or the sweep stops.
        """
        if self.stop_reason():
            return None
        config = None
        while self.waiting and config is None:
            config = self.waiting.pop(0)
            self._collect(config)
            if self.state.configs[config].state != "failed" and not self._conclude(config):
                config = None
        if config is None:
            if self.exhausted or (self.budget.trials and len(self.state.configs) >= self.budget.trials):
                return None
            values = self.searcher.suggest(self.state.history())
            if values is None:
                self.exhausted = True
                return None
            config = self.config_id(values)
            # Synced to disk with the grant that follows.
            self.record(
                {"kind": "suggest", "config": config, "index": len(self.state.configs) + 1, "values": values},
                sync=False,
            )
        self.running[trial] = config
        return self._grant(config)

    def _grant(self, config: str) -> Attempt:
        """Record a new attempt of a configuration, fencing off its earlier attempts, and return it."""
        attempt, earlier = self.state.last_attempt(config) + 1, self.state.attempts.get(config, {})
        fenced = self.state.fences.get(config, {})
        fences = {str(number): fenced.get(number, count) for number, count in self._collect(config).items()}
        finished = [(s, f) for s, f in self.study.cells if (config, s, f) in self.state.cells]
        self._remove_checkpoints(config, finished)  # the last attempt may have died after a cell's end
        place = self._placement(self.state.failures.get(config, []), config) or Placement()
        placed = dataclasses.asdict(place) if place != Placement() else {}
        names = [name for number, name in sorted(earlier.items())]
        self.record(
            {"kind": "grant", "config": config, "attempt": attempt, "driver": self.number, "fences": fences, **placed}
        )
        cells = {
            f"{s}/{f}": CellRecord(
                sorted(self.state.recorded_epochs(config, s, f)),
                sorted(self.state.digests.get((config, s, f), ())),
                sorted(self.state.evaluated.get((config, s, f), {}).items()),
                dict(self.state.files.get((config, s, f), {})),
            )
            for s, f in self.study.cells
            if self.state.recorded_epochs(config, s, f)
        }
        values = self.state.configs[config].values
        index = self.state.indices[config]
        return Attempt(config, values, attempt, self.number, finished, cells, names, place, index, fences)

    def _placement(self, failures: list[LedgerRecord], config: str) -> Placement | None:
        """Choose where and in how many micro-batches to run after these failures; None if nothing remains to try."""
        if not failures:
            return Placement()
        training = self.study.train_config(self.state.configs[config].values, 0)
        return placement(failures, training.batch_size // training.accumulate, self.gpus)

    def _remove_checkpoints(self, config: str, cells: Iterable[tuple[int, int]]) -> None:
        if not self.study.keep_checkpoints:
            for seed, fold in cells:
                shutil.rmtree(checkpoint_folder(self.study.folder, config, seed, fold), ignore_errors=True)

    def _remove_strays(self) -> None:
        """Remove checkpoints of finished configurations: a trial that was fenced off may still have written some."""
        if not self.study.keep_checkpoints:
            for folder in (Path(self.study.folder) / "checkpoints").glob("*-s*-f*"):
                configuration = self.state.configs.get(folder.name.rpartition("-s")[0])
                if configuration is None or configuration.state in ("complete", "pruned"):
                    shutil.rmtree(folder, ignore_errors=True)

    def _collect(self, config: str) -> dict[int, int]:
        """Apply records that the configuration's attempts wrote but did not report; return each attempt's record count."""
        counts = {}
        for number, name in sorted(self.state.attempts.get(config, {}).items()):
            records = list(self.ledger.records_of(config, name))
            for record in records:
                self._apply(record)
            counts[number] = len(records)
        return counts

    def _conclude(self, config: str) -> bool:
        """Decide from a configuration's newest record whether it failed, completed, is pruned, or continues.

        The record may also be an old one, read from the ledger after a restart: a trial may have written it and died.

        Returns:
            Whether the configuration continues.
        """
        last = self.state.last_of.get(config)
        if self.state.configs[config].state != "running" or last is None:
            return self.state.configs[config].state == "running"
        diverged = [r for r in self.state.cells_of.get(config, []) if r["ended"] == "diverged"]
        if diverged:
            self._record_divergence(config, diverged[0])
        elif _finished(self.state.configs[config]) >= set(self.study.cells):
            # Synced to disk with the next record; the cells' own ends would restore it.
            self.record({"kind": "complete", "config": config}, sync=False)
            scores = self.state.configs[config].scores
            self.say(f"{self._name(config)}  complete: {100 * sum(scores) / len(scores):.2f} over {len(scores)} runs")
        else:
            self._prune_or_continue(config, last)
        state = self.state.configs[config].state
        if state != "running" and not diverged:
            self._remove_checkpoints(config, self.study.cells)
        return state == "running"

    def _record_divergence(self, config: str, cell_end: LedgerRecord) -> None:
        r = cell_end
        self.say(
            f"{self._name(config)}  seed {r['seed']} fold {r['fold']}  diverged after {r['theta_updates']} updates: "
            "a loss, gradient or weight was not finite"
        )
        failure = {"attempt": r["attempt"], "reason": "diverged", "message": "diverged", "final": True}
        self.record({"kind": "fail", "config": config, **failure})

    def _prune_or_continue(self, config: str, last: LedgerRecord) -> None:
        """Ask the pruner, unless it has decided on this cell already or the cell's end is still to come."""
        cell = (last["seed"], last["fold"])
        epoch = last["epochs"] - 1 if last["kind"] == "cell_end" else last["epoch"]
        waits = last["kind"] == "epoch" and last["ended"] is not None  # the cell's end comes with this epoch
        undecided = not waits and cell not in self.state.before_extension.get(config, ())
        history = self.state.decision_histories.get(config) or self.state.history()
        if undecided and not self.pruner.decide(history, config, cell, epoch):
            self.record({"kind": "prune", "config": config, "seed": cell[0], "fold": cell[1], "epoch": epoch})
            self.say(f"{self._name(config)}  pruned after epoch {epoch + 1} of seed {cell[0]} fold {cell[1]}")

    # Receiving results.

    def receive(self, records: list[LedgerRecord]) -> bool:
        """Apply a trial's new records; the same records a second time change nothing.

        Args:
            records: The records that the trial wrote to the ledger since its last report.

        Returns:
            Whether the trial continues.

        Raises:
            LeaseError: Another driver has taken over; it receives these records itself.
        """
        self.may_decide()
        for record in records:
            if not self._apply(record):
                continue
            if record["kind"] == "epoch":
                self._warn_of_collapse(record)
                if record.get("negative_weights") and not self._negative:
                    self._negative = True  # warn once; every epoch records it
                    self.say(f"{self._name(record['config'])}  {record['negative_weights']} {NEGATIVE}")
            elif record["ended"] != "diverged":
                self._remove_checkpoints(record["config"], [(record["seed"], record["fold"])])
                place = f"seed {record['seed']} fold {record['fold']}"
                self.say(
                    f"{self._name(record['config'])}  {place}  {100 * record['score']:.2f}  best epoch "
                    f"{record['best_epoch'] + 1} of {record['epochs']}  {record['seconds']:.0f} s"
                )
                self._compare_with_replaced(record)
            self._conclude(record["config"])
        return not records or self.state.configs[records[-1]["config"]].state == "running"

    def _compare_with_replaced(self, record: LedgerRecord) -> None:
        """Report whether a repaired cell has the same scores as before."""
        cell = (record["config"], record["seed"], record["fold"])
        if (old := self.state.replaced.get(cell)) is None:
            return
        if all(old.get(key) == record[key] for key in ("score", "exits", "best_epoch")):
            self.say(f"{self._name(record['config'])}  repaired: scores identical bit for bit")
        else:
            self.say(
                f"warning: {self._name(record['config'])}  repaired, but the validation score was {100 * old['score']:.4f} "
                f"before and is {100 * record['score']:.4f} now, since machine or versions differ; the new score counts: "
                "write it to MLflow by `leebert-tune rebuild-mlflow`"
            )

    def hang_report(self, trial: str) -> Path:
        """Return the file to which the trial's watchdog writes the stacks of a hang."""
        config = self.running.get(trial, "")
        name = self.state.attempts.get(config, {}).get(self.state.last_attempt(config), "")
        return hang_file(Path(self.study.folder), config, name)

    def _warn_of_collapse(self, record: LedgerRecord) -> None:
        fresh = set(record["collapsed"]) - self._collapsed
        if fresh:  # warn once per exit and session; every epoch records it
            self._collapsed |= fresh
            exits = len(record["exits"].get("score", ())) or 1 + max(fresh)
            self.say(f"{self._name(record['config'])}  {single_class(fresh, exits)}")

    def trial_ended(self, trial: str, failure: Failure | None = None) -> None:
        """Handle the end of a trial's process; after a failure, retry the configuration or record it as failed.

        Args:
            trial: Ray's id of the trial.
            failure: Why it ended early; None for a trial that ended as planned.
        """
        config = self.running.pop(trial, None)
        if config is None or self.state.configs[config].state != "running" or failure is None:
            return
        self._collect(config)
        if not self._conclude(config):
            return  # it had finished or diverged, and died before it could report that
        if failure.kind in STOPPING:
            self.halted = failure.message
            self.waiting.append(config)
            return
        attempt = self.state.last_attempt(config)
        failures = self.state.failures.get(config, [])
        before = list(failures)
        reason = {"reason": failure.kind, "message": failure.message[:2000]}
        record = {"kind": "fail", "config": config, "attempt": attempt, **reason}
        counted = [f for f in (*failures, record) if f.get("reason") not in UNCOUNTED]
        after = self._placement([*failures, record], config)
        final = failure.kind == "refused" or len(counted) > RETRIES or len(failures) >= MOST or after is None
        self.record({**record, "final": final})
        what = failure.message.strip().splitlines()[-1][:300]
        then = "not tried again" if final else "tried again"
        if after and not final and failure.kind in ("gpu_memory", "host_memory"):
            then += f" {after.described()}"
        self.say(f"{self._name(config)}  failed: {what}; {then}")
        if not final:
            self.waiting.append(config)
        elif not any(f["final"] for f in before):
            self._failed_first.add(config)
        # A running configuration that has not failed yet may still train an epoch.
        tried = all(self.state.failures.get(other) for other in self.running.values())
        if not self.state.fold_epochs and len(self._failed_first) >= HOPELESS and tried:
            self.halted = f"{HOPELESS} configurations failed before any trained an epoch, the last one by: {what}"

    # Ending the session.

    @property
    def at_once(self) -> bool:
        """Whether to stop before current epochs end: after a signal, the machine may vanish."""
        return self.interrupted or self.halted is not None

    def stop_reason(self) -> str | None:
        """Return why the sweep stops now, or None; once set, the reason stays."""
        if self._stop_reason is None:
            if self.halted:
                self._stop_reason = self.halted
            elif self.interrupted:
                self._stop_reason = "interrupted"
            elif self.stop_requested():
                self._stop_reason = "stopped on request"
            else:
                self._stop_reason = self._budget_used()
        return self._stop_reason

    def _budget_used(self) -> str | None:
        """Describe the budget that is used up; return None if none is."""
        b = self.budget
        if b.fold_epochs and self.state.fold_epochs >= b.fold_epochs:
            return f"the budget of {b.fold_epochs} fold-epochs is used"
        if b.hours and self.hours() >= b.hours:
            return f"the budget of {b.hours:g} hours is used"
        if b.gpu_hours and self.gpus * self.state.epoch_seconds / 3600 >= b.gpu_hours:
            return f"the budget of {b.gpu_hours:g} GPU-hours is used"
        return None

    def hours(self) -> float:
        """Return the wall-clock hours over all sessions of the sweep."""
        return (self.state.elapsed + self._seconds()) / 3600

    def _seconds(self) -> float:
        # The monotonic clock, since the system time may be set back.
        return time.monotonic() - self._clock

    def finish(self, error: str | None = None) -> EndStatus:
        """Write the end of this session to the ledger.

        Args:
            error: Why the session failed; None if it did not.

        Returns:
            `failed`, `stopped` (work remains) or `finished`.
        """
        unfinished = any(c.state == "running" for c in self.state.history()) or not self.exhausted
        trials_used = bool(self.budget.trials) and len(self.state.configs) >= (self.budget.trials or 0)
        if error:
            status: EndStatus = "failed"
        elif self.stop_reason() or (unfinished and not trials_used):
            status = "stopped"
        else:
            status = "finished"
        note = error or self.stop_reason() or ""
        try:
            self.may_decide()
            self._remove_strays()  # only with a valid lease: checkpoints of a new driver would look like strays
            for configuration in self.state.history():
                if configuration.state == "running":
                    self._collect(configuration.id)  # the listener gets all that the ledger holds
            self.record({"kind": "end", "status": status, "note": note, "elapsed": self._seconds()})
        except (StorageError, LeaseError):
            if not note:
                raise  # otherwise the error or the stop reason is reported already
        finally:
            self.writer.close()
        return status

    # Writing and applying records.

    def record(self, record: LedgerRecord, *, sync: bool = True) -> None:
        """Write one of the driver's own records to the ledger, apply it and pass its events to the listener.

        Args:
            record: The record, without sequence number and time.
            sync: Whether it is on disk when this returns; otherwise with the next one that is.
        """
        self.may_decide()
        (written,) = self.writer.append(record, sync=sync)
        self._apply(written)

    def _apply(self, record: LedgerRecord) -> bool:
        """Apply a record to the state; return False for one that was applied before or is fenced off."""
        if not self.state.apply_in_order(record):
            return False
        if self.listener:
            for event in events(record, self.state, self.curve_of):
                self.listener.put(event)
        return True

    def _name(self, config: str) -> str:
        return f"[{self.state.indices[config]}] {describe(self.state.configs[config].values)}"


def _finished(configuration: Configuration) -> set[tuple[int, int]]:
    return {(c.seed, c.fold) for c in configuration.cells if c.state == "finished"}
