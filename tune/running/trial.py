"""A Ray Tune trial: one configuration on all its cells, one report per epoch. Actors are reused between trials."""

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
    """Ray's view of :func:`tune.running.crossval.run_attempt`. Ray keeps no checkpoints: the ledger's are ours."""

    study: Study
    records: Iterator[list[LedgerRecord]] | None = None
    refusal: Failure | None = None  # why nothing is trained in this process

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
        """A node that joined after the sweep had begun may be another than those that were asked."""
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
                raise  # a traceback, for whoever has to mend it
            error.__traceback__ = None  # it holds the tensors for which there was no memory
            return self._failed(failure)
        ended = bool(records) and records[-1]["kind"] == "cell_end"
        is_last = ended and (
            (records[-1]["seed"], records[-1]["fold"]) == self.study.cells[-1] or records[-1]["ended"] == "diverged"
        )
        return {"records": records, "done": not records or is_last}

    def _failed(self, failure: Failure) -> dict[str, Any]:
        self.cleanup()
        # A list, as Ray flattens mappings on the way.
        return {"records": [], "failure": [failure.kind, failure.message], "done": True}

    def cleanup(self) -> None:
        if self.records is None:
            return
        self.records.close()  # type: ignore[attr-defined]
        self.records = None
        if self.study.device != "cpu":
            import torch

            # The next configuration in this process, and whoever shares the GPU, gets what this one had.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
