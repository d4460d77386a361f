"""The driver of a sweep: it decides what runs next, writes each decision to the ledger and feeds MLflow from the ledger.

:class:`Driver` does not depend on Ray; `tune.running.ray_adapters` plugs it into Ray Tune.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from leebert.errors import LeaseError, StorageError
from tune.pruners import Pruner
from tune.running.attempts import Attempts, Frame
from tune.running.conclusions import Conclusions, ResultLog
from tune.running.crossval import Attempt, hang_file
from tune.running.driver_records import DriverRecords, LedgerAccess, finished_cells
from tune.running.failures import HOPELESS, STOPPING, Failure
from tune.running.stopping import Stopping
from tune.searchers import Searcher
from tune.space import Budget
from tune.store.history import Configuration, describe
from tune.store.ledger import LedgerRecord, SweepState
from tune.tracking.feed import Listener

log = logging.getLogger(__name__)

EndStatus = Literal["finished", "stopped", "failed"]


class Driver:
    """Make the decisions of a sweep, each written to the ledger before it takes effect.

    Attributes:
        study: What all trials share.
        records: The state of the sweep, which the driver's decisions are written to.
        stopping: The reasons to stop; a signal is noted there.
        running: Ray's trial id → id of the configuration that it runs, or that is queued for resources.
        started_trials: Returns the trials of `running` that have resources; a simulation starts all of them.
        waiting: Ids of the configurations that run next, before the searcher suggests new ones.
        exhausted: Whether the searcher suggests no further configuration.
        started: When the session started, in seconds since 1970.
    """

    def __init__(
        self,
        study: Frame,
        ledger: LedgerAccess,
        searcher: Searcher,
        pruner: Pruner,
        *,
        config_id: Callable[[dict[str, Any]], str],
        number: int = 1,
        budget: Budget | None = None,
        gpus: float = 0.0,
        listener: Listener | None = None,
        log: logging.Logger = log,
        stop_requested: Callable[[], bool] = lambda: False,
        may_decide: Callable[[], None] = lambda: None,
        state: SweepState | None = None,
        repair: Collection[tuple[str, int, int]] = (),
        name: Callable[[Mapping[str, Any]], str] = describe,
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
            log: Receives a line for each result and decision.
            stop_requested: Whether `leebert-tune stop` was called.
            may_decide: Raises LeaseError once another driver has taken over.
            state: The ledger's state that the listener has received (:func:`tune.tracking.feed.replay`); read from the ledger if None.
            name: Returns the name of a configuration's values in messages; by default all of them.
            repair: Finished cells (configuration, seed, fold) to train again, since their files are damaged.
        """
        self.study, self.ledger, self.searcher, self.pruner = study, ledger, searcher, pruner
        self.config_id, self.log = config_id, log
        self.records = DriverRecords(
            ledger,
            number,
            Path(study.folder),
            state=state,
            listener=listener,
            may_decide=may_decide,
            log=log,
            name=name,
        )
        self.stopping = Stopping(budget or Budget(), gpus, stop_requested, self.state)
        self.attempts = Attempts(study, self.records, gpus)
        self.conclusions = Conclusions(study, self.records, self.attempts, pruner, log)
        self.result_log = ResultLog(self.records, log)
        self.started = time.time()
        self.running: dict[str, str] = {}
        self.started_trials: Callable[[], Collection[str]] = self.running.keys
        self.exhausted = False
        self.waiting: list[str] = []
        self._failed_first: set[str] = set()  # failed for good in this session, and in none before
        self._queue_unfinished(self._within_budget(repair))

    @property
    def state(self) -> SweepState:
        """What the ledger's records hold that were applied so far."""
        return self.records.state

    def _queue_unfinished(self, repair: Collection[tuple[str, int, int]]) -> None:
        """Queue configurations to repair, with new seeds, interrupted, or failed for a reason that may be gone."""
        for configuration in self.state.history():
            repeated = [(seed, fold) for config, seed, fold in sorted(repair) if config == configuration.id]
            if repeated:
                self._begin_repair(configuration, repeated)
            elif configuration.state == "complete" and not set(self.study.cells) <= finished_cells(configuration):
                # The sweep got more seeds. The pruner has already decided on the finished cells.
                finished = sorted(finished_cells(configuration))
                self.records.write({"kind": "reopen", "config": configuration.id, "cells": finished})
                self.waiting.append(configuration.id)
            elif self._may_retry(configuration) or (
                self.state.configs[configuration.id].state == "running" and self.conclusions.conclude(configuration.id)
            ):
                self.waiting.append(configuration.id)

    def _within_budget(self, repair: Collection[tuple[str, int, int]]) -> Collection[tuple[str, int, int]]:
        """Return the cells to repair; none if the budget is used up, since they would stay unfinished."""
        if not repair or (used := self.stopping.budget_used()) is None:
            return repair
        self.log.warning(
            f"nothing is repaired, since {used}: raise it (--set budget.KEY=VALUE) and run the same command again"
        )
        return ()

    def _begin_repair(self, configuration: Configuration, cells: list[tuple[int, int]]) -> None:
        """Reopen a configuration to train some finished cells from the beginning, without the pruner."""
        config = configuration.id
        # A kept checkpoint is of the last epoch; the logits of the best epoch cannot be recomputed from it.
        self.attempts.remove_checkpoints(config, cells, kept_ones=True)
        void = {"attempt": self.state.last_attempt(config), "cells": cells}
        self.records.write(
            {"kind": "reopen", "config": config, "cells": sorted(finished_cells(configuration)), "repair": void}
        )
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
        if self.stopping.reason():
            return None
        config = None
        while self.waiting and config is None:
            config = self.waiting.pop(0)
            self.records.collect(config)
            if self.state.configs[config].state != "failed" and not self.conclusions.conclude(config):
                config = None
        if config is None:
            if self.exhausted or self.stopping.trials_used:
                return None
            values = self.searcher.suggest(self.state.history())
            if values is None:
                self.exhausted = True
                return None
            config = self.config_id(values)
            # Synced to disk with the grant that follows.
            self.records.write(
                {"kind": "suggest", "config": config, "index": len(self.state.configs) + 1, "values": values},
                sync=False,
            )
        self.running[trial] = config
        return self.attempts.grant(config)

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
        self.records.may_decide()
        for record in records:
            if not self.records.apply(record):
                continue
            if record["kind"] == "epoch":
                self.result_log.epoch(record)
            elif record["ended"] != "diverged":
                self.attempts.remove_checkpoints(record["config"], [(record["seed"], record["fold"])])
                self.result_log.cell_end(record)
            self.conclusions.conclude(record["config"])
        return not records or self.state.configs[records[-1]["config"]].state == "running"

    def hang_report(self, trial: str) -> Path:
        """Return the file to which the trial's watchdog writes the stacks of a hang."""
        config = self.running.get(trial, "")
        name = self.state.attempts.get(config, {}).get(self.state.last_attempt(config), "")
        return hang_file(Path(self.study.folder), config, name)

    def trial_ended(self, trial: str, failure: Failure | None = None) -> None:
        """Handle the end of a trial's process; after a failure, retry the configuration or record it as failed.

        Args:
            trial: Ray's id of the trial.
            failure: Why it ended early; None for a trial that ended as planned.
        """
        config = self.running.pop(trial, None)
        if config is None or self.state.configs[config].state != "running" or failure is None:
            return
        self.records.collect(config)
        if not self.conclusions.conclude(config):
            return  # it had finished or diverged, and died before it could report that
        if failure.kind in STOPPING:
            self.stopping.halted = failure.message
            self.waiting.append(config)
            return
        new = not any(f["final"] for f in self.state.failures.get(config, []))
        if self.conclusions.fail(config, failure):
            self.waiting.append(config)
        elif new:
            self._failed_first.add(config)
        # A running configuration that has not failed yet may still train an epoch.
        tried = all(self.state.failures.get(other) for other in self.running.values())
        if not self.state.fold_epochs and len(self._failed_first) >= HOPELESS and tried:
            self.stopping.halted = (
                f"{HOPELESS} configurations failed before any trained an epoch, the last one by: {failure.last_line}"
            )

    # Ending the session.

    def finish(self, error: str | None = None) -> EndStatus:
        """Write the end of this session to the ledger.

        Args:
            error: Why the session failed; None if it did not.

        Returns:
            `failed`, `stopped` (work remains) or `finished`.
        """
        unfinished = any(c.state == "running" for c in self.state.history()) or not self.exhausted
        if error:
            status: EndStatus = "failed"
        elif self.stopping.reason() or (unfinished and not self.stopping.trials_used):
            status = "stopped"
        else:
            status = "finished"
        note = error or self.stopping.reason() or ""
        try:
            self.records.may_decide()
            self.attempts.remove_strays()  # only with a valid lease: checkpoints of a new driver would look like strays
            for configuration in self.state.history():
                if configuration.state == "running":
                    self.records.collect(configuration.id)  # the listener gets all that the ledger holds
            self.records.write({"kind": "end", "status": status, "note": note, "elapsed": self.stopping.seconds()})
        except (StorageError, LeaseError):
            if not note:
                raise  # otherwise the error or the stop reason is reported already
        finally:
            self.records.writer.close()
        return status
