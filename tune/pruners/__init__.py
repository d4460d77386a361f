"""Pruners: which configuration stops before its last cell. Each is one file and a pure function of the history; none knows Ray.

Another package adds its own by an entry point of the group ``leebert.pruners`` or by ``PRUNERS.register``, and tests it with
:class:`tune.testing.PrunerContract`.
"""

from __future__ import annotations

from typing import Protocol

from tune.pruners.places import Places as Places
from tune.space import SweepSpec
from tune.space.parts import PRUNERS as PRUNERS
from tune.space.parts import PrunerRow as PrunerRow
from tune.space.parts import Warmed as Warmed
from tune.store.history import History


class Pruner(Protocol):
    """Decides after every report: an epoch's while its cell runs, and the cell's end unless it was the last cell."""

    def decide(self, history: History, config_id: str, cell: tuple[int, int], epoch: int) -> bool:
        """Whether a configuration goes on after an epoch (from 0) of its (seed, fold) cell, which the history holds."""
        ...


def make_pruner(spec: SweepSpec) -> Pruner:
    """Make the pruner that a space names."""
    pruner: Pruner = PRUNERS[spec.pruner.name].make(spec, spec.pruner.options)
    return pruner
