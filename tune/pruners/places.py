"""Places in a configuration's training: after so many epochs over its cells, in the order that all configurations share.

A cell that has ended counts all its epochs, however early it stopped. Whoever is compared at a place has been trained
on the same cells and as long: fold scores differ by more than configurations do, and means over different folds would
mostly rank the folds.
"""

from __future__ import annotations

import dataclasses
import math

from tune.space import SweepSpec
from tune.store.history import Cell, Configuration, History


@dataclasses.dataclass(frozen=True)
class Places:
    """The places of a sweep: `cells` are its (seed, fold) in order, `max_epochs` the epochs of each."""

    cells: tuple[tuple[int, int], ...]
    max_epochs: int

    @classmethod
    def of(cls, spec: SweepSpec) -> Places:
        """The places of a space."""
        return cls(spec.cells(), spec.max_epochs)

    @property
    def end(self) -> int:
        """The place where a configuration is complete."""
        return len(self.cells) * self.max_epochs

    def reached(
        self, history: History, config_id: str, cell: tuple[int, int], epoch: int
    ) -> tuple[Configuration, range]:
        """A configuration, and the places that its report of an epoch (from 0) of a cell brought it to."""
        asked = next((c for c in history if c.id == config_id), None)
        current = None if asked is None else _cell(asked, cell)
        if asked is None or current is None or all(report.epoch != epoch for report in current.epochs):
            raise ValueError(f"the history has no epoch {epoch} of configuration {config_id} in (seed, fold) {cell}")
        before = self.cells.index(cell) * self.max_epochs
        # An ended cell has passed the places of the epochs that it left out, too.
        last = epoch + 1 if current.state == "running" else self.max_epochs
        return asked, range(before + epoch + 1, before + last + 1)

    def score(self, configuration: Configuration, place: int) -> float | None:
        """The mean over the place's cells of the best scores up to the place; None if it hasn't been reached.

        Minus infinity, the worst, where one of these cells has diverged.
        """
        position, epoch = divmod(place - 1, self.max_epochs)
        scores = []
        for i, key in enumerate(self.cells[: position + 1]):
            cell = _cell(configuration, key)
            if cell is None:
                return None
            if cell.state == "diverged":
                scores.append(-math.inf)
                continue
            last = self.max_epochs - 1 if i < position else epoch
            if not cell.epochs or (cell.state == "running" and max(report.epoch for report in cell.epochs) < last):
                return None
            scores.append(max((r.score for r in cell.epochs if r.epoch <= last), default=-math.inf))
        return math.fsum(scores) / len(scores)


def _cell(configuration: Configuration, key: tuple[int, int]) -> Cell | None:
    return next((cell for cell in configuration.cells if (cell.seed, cell.fold) == key), None)
