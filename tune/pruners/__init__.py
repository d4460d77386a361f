"""Pruners: which configuration stops before its last cell. Each is a pure function of the history, and knows no Ray."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tune.pruners.halving import HalvingPruner
from tune.pruners.none import NoPruner
from tune.pruners.places import Places
from tune.pruners.racing import RacingPruner
from tune.space import SweepSpec
from tune.store.history import History


class Pruner(Protocol):
    """Decides after every report: an epoch's while its cell runs, and the cell's end unless it was the last cell."""

    def decide(self, history: History, config_id: str, cell: tuple[int, int], epoch: int) -> bool:
        """Whether a configuration goes on after an epoch (from 0) of its (seed, fold) cell, which the history holds."""
        ...


def _places(spec: SweepSpec) -> Places:
    return Places(spec.cells(), spec.max_epochs)


PRUNERS: dict[str, Callable[[SweepSpec], Pruner]] = {
    "none": lambda spec: NoPruner(),
    "racing": lambda spec: RacingPruner(_places(spec), spec.pruner.alpha, spec.pruner.min_epochs),
    "halving": lambda spec: HalvingPruner(_places(spec), spec.pruner.eta, spec.pruner.min_epochs),
}


def make_pruner(spec: SweepSpec) -> Pruner:
    """The pruner that a space names."""
    return PRUNERS[spec.pruner.name](spec)
