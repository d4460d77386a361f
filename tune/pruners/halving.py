"""Asynchronous successive halving (Li et al., 2020, algorithm 2, in its stopping form), paired over cells.

A configuration's resource is its number of epochs over all cells, in the order that all configurations share; a cell
that has ended counts all its epochs, however early it stopped. Rungs lie at min_epochs·eta^j. Each is a place (cell,
epoch), so whoever is compared at a rung has been trained on the same cells and as long: fold scores differ by more
than configurations do, and means over different folds would mostly rank the folds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from tune.history import Cell, Configuration, History


@dataclasses.dataclass(frozen=True)
class HalvingPruner:
    """One configuration in `eta` passes a rung, the best always, ties all.

    Nobody waits: a configuration is judged among those that have been there when it comes, so the first ones pass.
    """

    cells: tuple[tuple[int, int], ...]
    max_epochs: int
    eta: int = 3
    min_epochs: int = 1

    def decide(self, history: History, config_id: str, cell: tuple[int, int], epoch: int) -> bool:
        asked = next((c for c in history if c.id == config_id), None)
        current = None if asked is None else _cell(asked, cell)
        if asked is None or current is None or all(report.epoch != epoch for report in current.epochs):
            raise ValueError(f"the history has no epoch {epoch} of configuration {config_id} in (seed, fold) {cell}")
        before = self.cells.index(cell) * self.max_epochs
        # An ended cell has passed the rungs of the epochs that it left out, too.
        reached = before + (epoch + 1 if current.state == "running" else self.max_epochs)
        return all(self._passes(history, asked, rung) for rung in self.rungs() if before + epoch < rung <= reached)

    def rungs(self) -> Iterator[int]:
        """The resources at which configurations are judged; at the very end there is nothing left to save."""
        rung = self.min_epochs
        while rung < len(self.cells) * self.max_epochs:
            yield rung
            rung *= self.eta

    def _passes(self, history: History, asked: Configuration, rung: int) -> bool:
        own = self.value(asked, rung)
        values = sorted((v for c in history if (v := self.value(c, rung)) is not None), reverse=True)
        return own is None or own >= values[max(1, len(values) // self.eta) - 1]

    def value(self, configuration: Configuration, rung: int) -> float | None:
        """The mean over the rung's cells of the best scores up to the rung; None if it hasn't been reached.

        Minus infinity, the worst, where one of these cells has diverged.
        """
        position, epoch = divmod(rung - 1, self.max_epochs)
        scores = []
        for place, key in enumerate(self.cells[: position + 1]):
            cell = _cell(configuration, key)
            if cell is None:
                return None
            if cell.state == "diverged":
                scores.append(-math.inf)
                continue
            last = self.max_epochs - 1 if place < position else epoch
            if not cell.epochs or (cell.state == "running" and max(report.epoch for report in cell.epochs) < last):
                return None
            scores.append(max((r.score for r in cell.epochs if r.epoch <= last), default=-math.inf))
        return math.fsum(scores) / len(scores)


def _cell(configuration: Configuration, key: tuple[int, int]) -> Cell | None:
    return next((cell for cell in configuration.cells if (cell.seed, cell.fold) == key), None)
