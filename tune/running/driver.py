"""The driver of a sweep: decides what runs next, writes every decision to the ledger, and feeds MLflow from it.

:class:`Driver` knows nothing of Ray; `tune.running.ray_adapters` plugs it into Ray Tune.
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
    """What the driver must know of a study."""

    @property
    def folder(self) -> str: ...
    @property
    def cells(self) -> tuple[tuple[int, int], ...]: ...
    @property
    def keep_checkpoints(self) -> bool: ...
    def train_config(self, values: Mapping[str, Any], seed: int) -> TrainConfig: ...


class Appender(Protocol):
    """Takes the driver's own records, and gives them back numbered and dated."""

    def append(self, *records: Mapping[str, Any], sync: bool = True) -> list[LedgerRecord]: ...
    def close(self) -> None: ...


class Records(Protocol):
    """What the driver needs of a ledger, so that a simulation can do without files."""

    def read(self) -> SweepState: ...
    def driver_writer(self, driver: int) -> Appender: ...
    def records_of(self, config: str, attempt: str) -> Iterable[LedgerRecord]: ...


class Driver:
    """The decisions of a sweep, each in the ledger before it is acted on."""

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
        """`number` is the lease's (`tune.store.lease`), and `may_decide` raises once that is lost.

        `state` is what the listener has been told already (:func:`replay`), where it was. `repair` names finished cells,
        (configuration, seed, fold), to be trained again, as their files are damaged.

        `gpus` are those of one trial.
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
        self.signal: int | None = None  # the one that interrupted it
        self.running: dict[str, str] = {}  # Ray's trial → configuration
        self.exhausted = False
        self._asked_to_stop: str | None = None
        self._collapsed: set[int] = set()
        self._negative = False
        self.waiting: list[str] = []
        self._given_up: set[str] = set()  # in this session, and for the first time
        repair = self._within_budget(repair)
        for configuration in self.state.history():
            again = [(seed, fold) for config, seed, fold in sorted(repair) if config == configuration.id]
            if again:
                self._begin_repair(configuration, again)
            elif configuration.state == "complete" and not set(study.cells) <= _finished(configuration):
                # The sweep was given more seeds. No pruner is asked: there was nothing left to prune where it stands.
                finished = sorted(_finished(configuration))
                self.record({"kind": "reopen", "config": configuration.id, "cells": finished})
                self.waiting.append(configuration.id)
            elif self._mendable(configuration) or (
                self.state.configs[configuration.id].state == "running" and self._settle(configuration.id)
            ):
                self.waiting.append(configuration.id)

    def _within_budget(self, repair: Collection[tuple[str, int, int]]) -> Collection[tuple[str, int, int]]:
        """The cells to repair; none where the budget is used, since a complete configuration would stay unfinished."""
        if not repair or (used := self._budget_used()) is None:
            return repair
        self.say(
            f"nothing is repaired, since {used}: raise it (--set budget.KEY=VALUE) and give the same command again"
        )
        return ()

    def _begin_repair(self, configuration: Configuration, cells: list[tuple[int, int]]) -> None:
        """Finished cells of a configuration are trained from their beginning again; the pruner is not asked any more."""
        config = configuration.id
        # A checkpoint that was kept is of the last epoch, from which nothing of the best one can be made again.
        for seed, fold in cells:
            shutil.rmtree(checkpoint_folder(self.study.folder, config, seed, fold), ignore_errors=True)
        void = {"attempt": self.state.last_attempt(config), "cells": cells}
        self.record({"kind": "reopen", "config": config, "cells": sorted(_finished(configuration)), "repair": void})
        self.waiting.append(config)

    def _mendable(self, configuration: Configuration) -> bool:
        """Whether a configuration failed for a reason that may be gone: anything but its own divergence."""
        known = self.state.failures.get(configuration.id, [])
        return configuration.state == "failed" and bool(known) and known[-1]["reason"] != "diverged"

    # What runs next.

    def next_attempt(self, trial: str) -> Attempt | None:
        """An attempt for a free place, or None where nothing is left: what was begun before comes first."""
        if self.stop_reason():
            return None
        config = None
        while self.waiting and config is None:
            config = self.waiting.pop(0)
            self._collect(config)
            if self.state.configs[config].state != "failed" and not self._settle(config):
                config = None
        if config is None:
            if self.exhausted or (self.budget.trials and len(self.state.configs) >= self.budget.trials):
                return None
            values = self.searcher.suggest(self.state.history())
            if values is None:
                self.exhausted = True
                return None
            config = self.config_id(values)
            # On the disk with the grant that follows.
            self.record(
                {"kind": "suggest", "config": config, "index": len(self.state.configs) + 1, "values": values},
                sync=False,
            )
        self.running[trial] = config
        return self._grant(config)

    def _grant(self, config: str) -> Attempt:
        attempt, earlier = self.state.last_attempt(config) + 1, self.state.attempts.get(config, {})
        known = self.state.fences.get(config, {})
        fences = {str(number): known.get(number, count) for number, count in self._collect(config).items()}
        finished = [(s, f) for s, f in self.study.cells if (config, s, f) in self.state.cells]
        self._remove_checkpoints(config, finished)  # it may have been killed between a cell's end and this
        place = self._placement(self.state.failures.get(config, []), config) or Placement()
        placed = dataclasses.asdict(place) if place != Placement() else {}
        names = [name for number, name in sorted(earlier.items())]
        self.record(
            {"kind": "grant", "config": config, "attempt": attempt, "driver": self.number, "fences": fences, **placed}
        )
        cells = {
            f"{s}/{f}": CellRecord(
                sorted(self.state.seen(config, s, f)),
                sorted(self.state.digests.get((config, s, f), ())),
                sorted(self.state.evaluated.get((config, s, f), {}).items()),
                dict(self.state.files.get((config, s, f), {})),
            )
            for s, f in self.study.cells
            if self.state.seen(config, s, f)
        }
        values = self.state.configs[config].values
        index = self.state.indices[config]
        return Attempt(config, values, attempt, self.number, finished, cells, names, place, index, fences)

    def _placement(self, failures: list[LedgerRecord], config: str) -> Placement | None:
        if not failures:
            return Placement()
        training = self.study.train_config(self.state.configs[config].values, 0)
        return placement(failures, training.batch_size // training.accumulate, self.gpus)

    def _remove_checkpoints(self, config: str, cells: Iterable[tuple[int, int]]) -> None:
        if not self.study.keep_checkpoints:
            for seed, fold in cells:
                shutil.rmtree(checkpoint_folder(self.study.folder, config, seed, fold), ignore_errors=True)

    def _remove_strays(self) -> None:
        """Checkpoints of configurations that are done: a trial that was given up may have written on."""
        if not self.study.keep_checkpoints:
            for folder in (Path(self.study.folder) / "checkpoints").glob("*-s*-f*"):
                configuration = self.state.configs.get(folder.name.rpartition("-s")[0])
                if configuration is None or configuration.state in ("complete", "pruned"):
                    shutil.rmtree(folder, ignore_errors=True)

    def _collect(self, config: str) -> dict[int, int]:
        """Take what the configuration's attempts wrote but could not report any more; how many records each has."""
        counts = {}
        for number, name in sorted(self.state.attempts.get(config, {}).items()):
            records = list(self.ledger.records_of(config, name))
            for record in records:
                self._apply(record)
            counts[number] = len(records)
        return counts

    def _settle(self, config: str) -> bool:
        """Draw the conclusions from a configuration's newest record; whether it goes on.

        Also where that record was read from the ledger after a restart: a trial may have written it and died, or Ray
        may have stopped listening.
        """
        last = self.state.last_of.get(config)
        if self.state.configs[config].state != "running" or last is None:
            return self.state.configs[config].state == "running"
        ended = [r for r in self.state.cells_of.get(config, []) if r["ended"] == "diverged"]
        finished = _finished(self.state.configs[config])
        cell = (last["seed"], last["fold"])
        if ended:
            r = ended[0]
            self.say(
                f"{self._name(config)}  seed {r['seed']} fold {r['fold']}  diverged after {r['theta_updates']} updates: "
                "a loss, gradient or weight was not finite"
            )
            self.record(
                {
                    "kind": "fail",
                    "config": config,
                    "attempt": r["attempt"],
                    "reason": "diverged",
                    "message": "diverged",
                    "final": True,
                }
            )
        elif finished >= set(self.study.cells):
            # On the disk with the next record: were it lost, the cells' ends say the same.
            self.record({"kind": "complete", "config": config}, sync=False)
            scores = self.state.configs[config].scores
            self.say(f"{self._name(config)}  complete: {100 * sum(scores) / len(scores):.2f} over {len(scores)} cells")
        else:
            epoch = last["epochs"] - 1 if last["kind"] == "cell_end" else last["epoch"]
            waits = last["kind"] == "epoch" and last["ended"] is not None  # its cell's end comes with it
            asked = not waits and cell not in self.state.settled.get(config, ())
            history = self.state.then.get(config) or self.state.history()
            if asked and not self.pruner.decide(history, config, cell, epoch):
                self.record({"kind": "prune", "config": config, "seed": cell[0], "fold": cell[1], "epoch": epoch})
                self.say(f"{self._name(config)}  pruned after epoch {epoch + 1} of seed {cell[0]} fold {cell[1]}")
        state = self.state.configs[config].state
        if state != "running" and not ended:
            self._remove_checkpoints(config, self.study.cells)
        return state == "running"

    # What comes back.

    def receive(self, records: list[LedgerRecord]) -> bool:
        """Take a trial's new records; False when the trial is to stop. Telling the same twice changes nothing."""
        self.may_decide()  # whoever has taken over tells the listener what this trial has found, or ignores it
        for record in records:
            if not self._apply(record):
                continue
            if record["kind"] == "epoch":
                self._warn_of_collapse(record)
                if record.get("negative_weights") and not self._negative:
                    self._negative = True  # once: it is recorded with every epoch
                    self.say(f"{self._name(record['config'])}  {record['negative_weights']} {NEGATIVE}")
            elif record["ended"] != "diverged":
                self._remove_checkpoints(record["config"], [(record["seed"], record["fold"])])
                place = f"seed {record['seed']} fold {record['fold']}"
                self.say(
                    f"{self._name(record['config'])}  {place}  {100 * record['score']:.2f}  best epoch "
                    f"{record['best_epoch'] + 1} of {record['epochs']}  {record['seconds']:.0f} s"
                )
                self._compare_with_replaced(record)
            self._settle(record["config"])
        return not records or self.state.configs[records[-1]["config"]].state == "running"

    def _compare_with_replaced(self, record: LedgerRecord) -> None:
        """Say whether a cell that was trained again has the scores that it had."""
        cell = (record["config"], record["seed"], record["fold"])
        if (old := self.state.replaced.get(cell)) is None:
            return
        if all(old.get(key) == record[key] for key in ("score", "exits", "best_epoch")):
            self.say(f"{self._name(record['config'])}  repaired: its scores are the same to the last bit")
        else:
            self.say(
                f"warning: {self._name(record['config'])}  repaired, but it scored {100 * old['score']:.4f} before and "
                f"{100 * record['score']:.4f} now, as machine or versions differ; the new score counts, and MLflow has it after "
                "`leebert-tune rebuild-mlflow`"
            )

    def hung(self, trial: str) -> Path:
        """Where a trial's watchdog would have reported."""
        config = self.running.get(trial, "")
        name = self.state.attempts.get(config, {}).get(self.state.last_attempt(config), "")
        return hang_file(Path(self.study.folder), config, name)

    def _warn_of_collapse(self, record: LedgerRecord) -> None:
        fresh = set(record["collapsed"]) - self._collapsed
        if fresh:  # once per exit and session: it is recorded with every epoch
            self._collapsed |= fresh
            exits = len(record["exits"].get("score", ())) or 1 + max(fresh)
            self.say(f"{self._name(record['config'])}  {single_class(fresh, exits)}")

    def gone(self, trial: str, failure: Failure | None = None) -> None:
        """A trial's process has ended; after a failure its configuration is tried again, or given up."""
        config = self.running.pop(trial, None)
        if config is None or self.state.configs[config].state != "running" or failure is None:
            return
        self._collect(config)
        if not self._settle(config):
            return  # it had done all that it was to do, or diverged, and died before it could say so
        if failure.kind in STOPPING:
            self.halted = failure.message
            self.waiting.append(config)
            return
        attempt = self.state.last_attempt(config)
        known = self.state.failures.get(config, [])
        before = list(known)
        record = {
            "kind": "fail",
            "config": config,
            "attempt": attempt,
            "reason": failure.kind,
            "message": failure.message[:2000],
        }
        counted = [f for f in (*known, record) if f.get("reason") not in UNCOUNTED]
        after = self._placement([*known, record], config)
        final = failure.kind == "refused" or len(counted) > RETRIES or len(known) >= MOST or after is None
        self.record({**record, "final": final})
        what = failure.message.strip().splitlines()[-1][:300]
        then = "given up" if final else "tried again"
        if after and not final and failure.kind in ("gpu_memory", "host_memory"):
            then += f" {after.described()}"
        self.say(f"{self._name(config)}  failed: {what}; {then}")
        if not final:
            self.waiting.append(config)
        elif not any(f["final"] for f in before):
            self._given_up.add(config)
        # One that hasn't failed yet may be about to show that all is well.
        tried = all(self.state.failures.get(other) for other in self.running.values())
        if not self.state.fold_epochs and len(self._given_up) >= HOPELESS and tried:
            self.halted = f"{HOPELESS} configurations failed before one had trained an epoch, the last by: {what}"

    # When it ends.

    @property
    def at_once(self) -> bool:
        """Whether what is under way is not to be waited for: who sends a signal may take the machine away."""
        return self.interrupted or self.halted is not None

    def stop_reason(self) -> str | None:
        """Why everything is to stop now, or None. Once it is so it stays so."""
        if self._asked_to_stop is None:
            if self.halted:
                self._asked_to_stop = self.halted
            elif self.interrupted:
                self._asked_to_stop = "interrupted"
            elif self.stop_requested():
                self._asked_to_stop = "stopped on request"
            else:
                self._asked_to_stop = self._budget_used()
        return self._asked_to_stop

    def _budget_used(self) -> str | None:
        b = self.budget
        if b.fold_epochs and self.state.fold_epochs >= b.fold_epochs:
            return f"the budget of {b.fold_epochs} fold-epochs is used"
        if b.hours and self.hours() >= b.hours:
            return f"the budget of {b.hours:g} hours is used"
        if b.gpu_hours and self.gpus * self.state.epoch_seconds / 3600 >= b.gpu_hours:
            return f"the budget of {b.gpu_hours:g} GPU-hours is used"
        return None

    def hours(self) -> float:
        """Wall-clock hours over all sessions."""
        return (self.state.elapsed + self._seconds()) / 3600

    def _seconds(self) -> float:
        # Not from the clock's time, which somebody may set back.
        return time.monotonic() - self._clock

    def finish(self, error: str | None = None) -> EndStatus:
        """Write the end of this session; `stopped` where something is left to do."""
        left = any(c.state == "running" for c in self.state.history()) or not self.exhausted
        trials_used = bool(self.budget.trials) and len(self.state.configs) >= (self.budget.trials or 0)
        if error:
            status: EndStatus = "failed"
        elif self.stop_reason() or (left and not trials_used):
            status = "stopped"
        else:
            status = "finished"
        note = error or self.stop_reason() or ""
        try:
            self.may_decide()
            self._remove_strays()  # strange to one that was taken over is what the new driver has begun
            for configuration in self.state.history():
                if configuration.state == "running":
                    self._collect(configuration.id)  # so that what is told of the end is what the ledger holds
            self.record({"kind": "end", "status": status, "note": note, "elapsed": self._seconds()})
        except (StorageError, LeaseError):
            if not note:
                raise  # else the error, or the reason to stop, says it already
        finally:
            self.writer.close()
        return status

    # Records.

    def record(self, record: LedgerRecord, *, sync: bool = True) -> None:
        """Write one of the driver's own records, apply it, tell the listener."""
        self.may_decide()
        (written,) = self.writer.append(record, sync=sync)
        self._apply(written)

    def _apply(self, record: LedgerRecord) -> bool:
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
