"""What searchers and pruners may know: plain values read from the ledger, in the order in which configurations were suggested."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

CellState = Literal["running", "finished", "diverged"]
#: (configuration, seed, fold) of a cell.
CellKey = tuple[str, int, int]

#: (seed, fold): the same cell of every configuration.
SeedFold = tuple[int, int]

ConfigState = Literal["running", "complete", "pruned", "failed"]


@dataclasses.dataclass(frozen=True)
class EpochScore:
    """The held-out score of one epoch (numbered from 0): the mean over exits, and each exit's, as fractions.

    above: whether an exit scores above the majority class; True where that was not recorded.
    """

    epoch: int
    score: float
    exits: tuple[float, ...] = ()
    above: bool = True


@dataclasses.dataclass(frozen=True)
class Cell:
    """One (configuration, seed, fold), and the epochs that it has reported so far.

    Its score is that of its best epoch (the earliest of equals; one with an exit above the majority class before all
    others); None before the first report and for a diverged cell.
    """

    seed: int
    fold: int
    state: CellState = "running"
    epochs: tuple[EpochScore, ...] = ()
    chosen: EpochScore | None = None  # what its end record says; in a method of several stages the last one's best

    @property
    def best(self) -> EpochScore | None:
        if self.state == "diverged":
            return None
        if self.chosen is not None or not self.epochs:
            return self.chosen
        return max(self.epochs, key=lambda e: (e.above, e.score, -e.epoch))


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One configuration of the search space (never the seed) with its cells in the sweep's fixed order.

    `values` holds the algorithm and every swept option that applies to it, e.g.
    ``{"algorithm": "clo-v2", "lr_theta": 1e-4, "lr_omega": 1e-3, "cycle_length": 4, "batch_size": 16}``;
    `id` is a short digest of the values, the same in every sweep.
    """

    id: str
    values: Mapping[str, Any]
    state: ConfigState = "running"
    cells: tuple[Cell, ...] = ()

    @property
    def scores(self) -> tuple[float, ...]:
        """The scores of its finished cells, in cell order."""
        return tuple(c.best.score for c in self.cells if c.state == "finished" and c.best is not None)


History = tuple[Configuration, ...]


def describe(values: Any) -> str:
    """A configuration in a few words: the algorithm, then its options."""
    rest = " ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items() if k != "algorithm")
    return f"{values.get('algorithm', '')} {rest}".strip()


@dataclasses.dataclass(frozen=True)
class Placement:
    """How a configuration is run after memory ran out: with a GPU or a node to itself, and in micro-batches."""

    alone: Literal["", "gpu", "node"] = ""
    accumulate: int = 1

    def described(self) -> str:
        """In words, empty where nothing is special."""
        alone = {"": "", "gpu": "alone on a GPU", "node": "alone on a node"}[self.alone]
        parts = f"{self.accumulate} micro-batches per batch" if self.accumulate > 1 else ""
        return ", ".join(filter(None, (alone, parts)))
