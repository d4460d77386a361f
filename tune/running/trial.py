"""A Ray Tune trial: one configuration on all its cells (seed, fold), one report per epoch.

Ray reuses the actor for the next trial.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

from ray.tune import Trainable

from leebert.errors import SweepError
from tune.running.crossval import Attempt, Study, run_attempt
from tune.running.failures import Failure, of_exception
from tune.store.ledger import LedgerRecord


class CellTrial(Trainable):
    """Run :func:`tune.running.crossval.run_attempt` under Ray; checkpoints are the sweep's own, not Ray's."""

    study: Study
    records: Iterator[list[LedgerRecord]] | None = None
    refusal: Failure | None = None  # why this process trains nothing

    def setup(self, config: dict[str, Any], study: Study | None = None) -> None:
        assert study is not None
        self.study = study
        self.refusal = self._refusal()
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self.cleanup()
        self.records = run_attempt(self.study, Attempt.of(config["attempt"]))

    def _refusal(self) -> Failure | None:
        """Compare this node's versions with the driver's: nodes that join later were not checked at the start."""
        try:
            self.study.outside.make_available()
            if self.study.stamp is not None:
                self.study.stamp.require()
        except SweepError as error:
            return Failure("mismatch", str(error))
        return None

    def step(self) -> dict[str, Any]:
        assert self.records is not None
        if self.refusal:
            return self._failed(self.refusal)
        try:
            records = next(self.records, [])
        except Exception as error:
            failure = of_exception(error)
            if failure is None:
                raise  # an unknown error keeps its traceback
            error.__traceback__ = None  # it would keep the tensors that filled the memory
            return self._failed(failure)
        ended = bool(records) and records[-1]["kind"] == "cell_end"
        is_last = ended and (
            (records[-1]["seed"], records[-1]["fold"]) == self.study.cells[-1] or records[-1]["ended"] == "diverged"
        )
        return {"records": records, "done": not records or is_last}

    def _failed(self, failure: Failure) -> dict[str, Any]:
        self.cleanup()
        # A list, since Ray flattens mappings.
        return {"records": [], "failure": [failure.kind, failure.message], "done": True}

    def cleanup(self) -> None:
        if self.records is None:
            return
        self.records.close()  # type: ignore[attr-defined]
        self.records = None
        if self.study.device != "cpu":
            import torch

            # Free the memory for the next configuration in this process and for others on the GPU.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
