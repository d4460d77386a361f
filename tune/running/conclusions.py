"""What a configuration's newest results mean: it continues, or it is completed, pruned or failed."""

from __future__ import annotations

import logging

from leebert.majority import single_class
from leebert.train import NEGATIVE
from tune.pruners import Pruner
from tune.running.attempts import Attempts, Frame
from tune.running.driver_records import DriverRecords, finished_cells
from tune.running.failures import MOST, RETRIES, UNCOUNTED, Failure
from tune.store.ledger import LedgerRecord


class Conclusions:
    """Concludes from results whether configurations continue, and records and logs each conclusion."""

    def __init__(
        self, study: Frame, records: DriverRecords, attempts: Attempts, pruner: Pruner, log: logging.Logger
    ) -> None:
        """Take the driver's parts; the arguments are those of :class:`tune.running.driver.Driver`."""
        self._study, self._records, self._attempts, self._pruner, self._log = study, records, attempts, pruner, log

    def conclude(self, config: str) -> bool:
        """Decide from a configuration's newest record whether it failed, completed, is pruned, or continues.

        The record may also be an old one, read from the ledger after a restart: a trial may have written it and died.

        Returns:
            Whether the configuration continues.
        """
        state = self._records.state
        last = state.last_of.get(config)
        if state.configs[config].state != "running" or last is None:
            return state.configs[config].state == "running"
        diverged = [r for r in state.cells_of.get(config, []) if r["ended"] == "diverged"]
        if diverged:
            self._record_divergence(config, diverged[0])
        elif finished_cells(state.configs[config]) >= set(self._study.cells):
            # Synced to disk with the next record; the cells' own ends would restore it.
            self._records.write({"kind": "complete", "config": config}, sync=False)
            scores = state.configs[config].scores
            mean = 100 * sum(scores) / len(scores)
            self._log.info(f"{self._records.name(config)}  complete: {mean:.2f} over {len(scores)} runs")
        else:
            self._prune_or_continue(config, last)
        now = state.configs[config].state
        if now != "running" and not diverged:
            self._attempts.remove_checkpoints(config, self._study.cells)
        return now == "running"

    def _record_divergence(self, config: str, cell_end: LedgerRecord) -> None:
        r = cell_end
        self._log.warning(
            f"{self._records.name(config)}  seed {r['seed']} fold {r['fold']}  diverged after {r['theta_updates']} updates: "
            "a loss, gradient or weight was not finite"
        )
        failure = {"attempt": r["attempt"], "reason": "diverged", "message": "diverged", "final": True}
        self._records.write({"kind": "fail", "config": config, **failure})

    def _prune_or_continue(self, config: str, last: LedgerRecord) -> None:
        """Ask the pruner, unless it has decided on this cell already or the cell's end is still to come."""
        state = self._records.state
        cell = (last["seed"], last["fold"])
        epoch = last["epochs"] - 1 if last["kind"] == "cell_end" else last["epoch"]
        waits = last["kind"] == "epoch" and last["ended"] is not None  # the cell's end comes with this epoch
        undecided = not waits and cell not in state.before_extension.get(config, ())
        history = state.decision_histories.get(config) or state.history()
        if undecided and not self._pruner.decide(history, config, cell, epoch):
            self._records.write({"kind": "prune", "config": config, "seed": cell[0], "fold": cell[1], "epoch": epoch})
            name = self._records.name(config)
            self._log.info(f"{name}  pruned after epoch {epoch + 1} of seed {cell[0]} fold {cell[1]}")

    def fail(self, config: str, failure: Failure) -> bool:
        """Record a failure of a configuration's newest attempt.

        Returns:
            Whether the configuration is tried again.
        """
        state = self._records.state
        failures = state.failures.get(config, [])
        reason = {"reason": failure.kind, "message": failure.message[:2000]}
        record = {"kind": "fail", "config": config, "attempt": state.last_attempt(config), **reason}
        counted = [f for f in (*failures, record) if f.get("reason") not in UNCOUNTED]
        after = self._attempts.placement([*failures, record], config)
        final = failure.kind == "refused" or len(counted) > RETRIES or len(failures) >= MOST or after is None
        self._records.write({**record, "final": final})
        then = "not tried again" if final else "tried again"
        if after and not final and failure.kind in ("gpu_memory", "host_memory"):
            then += f" {after.described()}"
        self._log.warning(f"{self._records.name(config)}  failed: {failure.last_line}; {then}")
        return not final


class ResultLog:
    """Logs the results of runs; what every epoch records is logged once per session."""

    def __init__(self, records: DriverRecords, log: logging.Logger) -> None:
        """Take the driver's records and logger."""
        self._records, self._log = records, log
        self._collapsed: set[int] = set()
        self._negative = False

    def epoch(self, record: LedgerRecord) -> None:
        """Warn of exits that predict a single class, once per exit, and once of negative weights."""
        name, fresh = self._records.name(record["config"]), set(record["collapsed"]) - self._collapsed
        if fresh:
            self._collapsed |= fresh
            exits = len(record["exits"].get("score", ())) or 1 + max(fresh)
            self._log.warning(f"{name}  {single_class(fresh, exits)}")
        if record.get("negative_weights") and not self._negative:
            self._negative = True
            self._log.warning(f"{name}  {record['negative_weights']} {NEGATIVE}")

    def cell_end(self, record: LedgerRecord) -> None:
        """Log the result of a run; after a repair, whether it has the same scores as before."""
        name = self._records.name(record["config"])
        self._log.info(
            f"{name}  seed {record['seed']} fold {record['fold']}  {100 * record['score']:.2f}  best epoch "
            f"{record['best_epoch'] + 1} of {record['epochs']}  {record['seconds']:.0f} s"
        )
        old = self._records.state.replaced.get((record["config"], record["seed"], record["fold"]))
        if old is None:
            return
        if all(old.get(key) == record[key] for key in ("score", "exits", "best_epoch")):
            self._log.info(f"{name}  repaired: scores identical bit for bit")
        else:
            self._log.warning(
                f"warning: {name}  repaired, but the validation score was {100 * old['score']:.4f} "
                f"before and is {100 * record['score']:.4f} now, since machine or versions differ; the new score counts: "
                "write it to MLflow by `leebert-tune rebuild-mlflow`"
            )
