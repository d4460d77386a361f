"""The input of searchers and pruners: plain values read from the ledger, in the order of the configurations' suggestion."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

CellState = Literal["running", "finished", "diverged"]
#: (configuration, seed, fold) of a cell: one run of a configuration, with one seed on one fold.
CellKey = tuple[str, int, int]

#: (seed, fold): the same run of every configuration.
SeedFold = tuple[int, int]

ConfigState = Literal["running", "complete", "pruned", "failed"]


@dataclasses.dataclass(frozen=True)
class EpochScore:
    """The validation score of one epoch.

    Attributes:
        epoch: Its number, from 0.
        score: The mean over exits, a fraction.
        exits: Each exit's score; empty if not recorded.
        above: Whether an exit scores above the majority class; True where not recorded.
    """

    epoch: int
    score: float
    exits: tuple[float, ...] = ()
    above: bool = True


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a configuration, with one seed on one fold, and its epochs so far.

    Its score is that of its best epoch: the earliest of equals; an epoch with an exit above the majority class precedes
    those without. `best` is None before the first report and for a diverged run.

    Attributes:
        seed: Seed of the run.
        fold: Validation fold of the run, from 0.
        state: `running`, `finished` or `diverged`.
        epochs: The reported epochs, in order.
        chosen: The best epoch by the record of its end; None before. With several stages, it is one of the last stage.
    """

    seed: int
    fold: int
    state: CellState = "running"
    epochs: tuple[EpochScore, ...] = ()
    chosen: EpochScore | None = None  # from its end record; with several stages, the best epoch of the last stage

    @property
    def best(self) -> EpochScore | None:
        if self.state == "diverged":
            return None
        if self.chosen is not None or not self.epochs:
            return self.chosen
        return max(self.epochs, key=lambda e: (e.above, e.score, -e.epoch))


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One configuration of the search space (without the seed), with its runs in the sweep's fixed order.

    Attributes:
        id: A short digest of the values, the same in every sweep.
        values: The method and every swept option that applies to it, such as ``{"algorithm": "clo-v2", "lr_theta": 1e-4,
            "lr_omega": 1e-3, "cycle_length": 4, "batch_size": 16}``.
        state: running, complete, pruned or failed.
        cells: Its runs.
    """

    id: str
    values: Mapping[str, Any]
    state: ConfigState = "running"
    cells: tuple[Cell, ...] = ()

    @property
    def scores(self) -> tuple[float, ...]:
        """The scores of its finished runs, in their order."""
        return tuple(c.best.score for c in self.cells if c.state == "finished" and c.best is not None)


History = tuple[Configuration, ...]


def describe(values: Any) -> str:
    """Return a configuration in a few words: the method, then its options."""
    options = " ".join(
        f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items() if k != "algorithm"
    )
    return f"{values.get('algorithm', '')} {options}".strip()


@dataclasses.dataclass(frozen=True)
class Placement:
    """The placement of a configuration after memory ran out.

    Attributes:
        alone: What the trial has for itself: a `gpu` or a `node`; empty: neither.
        accumulate: Micro-batches per batch.
    """

    alone: Literal["", "gpu", "node"] = ""
    accumulate: int = 1

    def described(self) -> str:
        """Return it in words; empty for the default placement."""
        alone = {"": "", "gpu": "alone on a GPU", "node": "alone on a node"}[self.alone]
        parts = f"{self.accumulate} micro-batches per batch" if self.accumulate > 1 else ""
        return ", ".join(filter(None, (alone, parts)))
