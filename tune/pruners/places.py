"""Positions in a configuration's training: its number of epochs over all runs, in the runs' fixed order.

A finished run counts with `max_epochs` epochs, however early it stopped. Configurations compared at a position have trained on
the same runs and for as long. Scores differ more between folds than between configurations, so means over different folds
would mostly rank the folds.
"""

from __future__ import annotations

import dataclasses
import math

from tune.space import SweepSpec
from tune.store.history import Cell, Configuration, History


@dataclasses.dataclass(frozen=True)
class Places:
    """The positions of a sweep.

    Attributes:
        cells: (seed, fold) of its runs, in order.
        max_epochs: Epochs of each run.
    """

    cells: tuple[tuple[int, int], ...]
    max_epochs: int

    @classmethod
    def of(cls, spec: SweepSpec) -> Places:
        """Make the positions of a space."""
        return cls(spec.cells(), spec.max_epochs)

    @property
    def end(self) -> int:
        """The position at which a configuration is completed."""
        return len(self.cells) * self.max_epochs

    def reached(
        self, history: History, config_id: str, cell: tuple[int, int], epoch: int
    ) -> tuple[Configuration, range]:
        """Find the positions that a report reached.

        Args:
            history: All configurations.
            config_id: The configuration.
            cell: (seed, fold) of its run.
            epoch: The reported epoch, from 0.

        Returns:
            The configuration, and the positions.

        Raises:
            ValueError: The history does not contain the report.
        """
        configuration = next((c for c in history if c.id == config_id), None)
        current = None if configuration is None else _cell(configuration, cell)
        if configuration is None or current is None or all(report.epoch != epoch for report in current.epochs):
            raise ValueError(f"the history has no epoch {epoch} of configuration {config_id} in (seed, fold) {cell}")
        before = self.cells.index(cell) * self.max_epochs
        # A finished run has also reached the positions of the epochs that it did not need.
        last = epoch + 1 if current.state == "running" else self.max_epochs
        return configuration, range(before + epoch + 1, before + last + 1)

    def score(self, configuration: Configuration, place: int) -> float | None:
        """Compute the mean over runs of the best scores up to a position.

        Args:
            configuration: The configuration.
            place: The position, in epochs over all runs.

        Returns:
            The mean; None if the position has not been reached; −∞ if a run has diverged.
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
