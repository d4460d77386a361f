"""Pruners stop configurations before their last run. Each is one file and a pure function of the history, without Ray.

Another package adds its own by an entry point of the group ``leebert.pruners`` or by ``PRUNERS.register``, and tests it with
:class:`tune.testing.PrunerContract`.
"""

from __future__ import annotations

from typing import Protocol

from tune.pruners.places import Places as Places
from tune.space import SweepSpec
from tune.space.plugins import PRUNERS as PRUNERS
from tune.space.plugins import PrunerPlugin as PrunerPlugin
from tune.space.plugins import Warmed as Warmed
from tune.store.history import History


class Pruner(Protocol):
    """Decides after every report: after each epoch of a run, and after the run's end unless it was the last run."""

    def decide(self, history: History, config_id: str, cell: tuple[int, int], epoch: int) -> bool:
        """Decide whether a configuration continues.

        Args:
            history: All configurations, including the reported epoch.
            config_id: The configuration.
            cell: (seed, fold) of its run.
            epoch: The reported epoch, from 0.

        Returns:
            False if the configuration is pruned.
        """
        ...


def make_pruner(spec: SweepSpec) -> Pruner:
    """Make the pruner of a space."""
    pruner: Pruner = PRUNERS[spec.pruner.name].make(spec, spec.pruner.options)
    return pruner
