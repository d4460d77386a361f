"""Asynchronous successive halving (Li et al., 2020, algorithm 2, in its stopping form), paired over runs.

A configuration's resource is its number of epochs over all runs. Rungs are at min_epochs·eta^j epochs; each is a position
as in `tune.pruners.places`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from pydantic import Field

from tune.pruners.places import Places
from tune.space import SweepSpec
from tune.space.plugins import PrunerPlugin, Warmed, Whole
from tune.store.history import Configuration, History


@dataclasses.dataclass(frozen=True)
class HalvingPruner:
    """Lets one configuration in `eta` pass each rung; the best one and ties always pass.

    A configuration is compared with those that have reached the rung before it, so the first ones pass.

    Attributes:
        places: Positions of the sweep's epochs.
        eta: The best 1/`eta` of the configurations continue.
        min_epochs: First rung, in epochs over all runs of a configuration.
    """

    places: Places
    eta: int = 3
    min_epochs: int = 1

    def decide(self, history: History, config_id: str, cell: tuple[int, int], epoch: int) -> bool:
        configuration, reached = self.places.reached(history, config_id, cell, epoch)
        return all(self._passes(history, configuration, rung) for rung in self.rungs() if rung in reached)

    def rungs(self) -> Iterator[int]:
        """Yield the rungs in epochs; the last epoch is none, since pruning there saves nothing."""
        rung = self.min_epochs
        while rung < self.places.end:
            yield rung
            rung *= self.eta

    def _passes(self, history: History, configuration: Configuration, rung: int) -> bool:
        score = self.places.score(configuration, rung)
        values = sorted((v for c in history if (v := self.places.score(c, rung)) is not None), reverse=True)
        return score is None or score >= values[max(1, len(values) // self.eta) - 1]


class HalvingOptions(Warmed):
    """The options of successive halving."""

    eta: Whole = Field(default=3, ge=2, description="the best 1/`eta` of the configurations continue")


def make(spec: SweepSpec, options: HalvingOptions) -> HalvingPruner:
    """Make the pruner of a space."""
    return HalvingPruner(Places.of(spec), options.eta, options.min_epochs)


PRUNER = PrunerPlugin(
    name="halving",
    title="after `min_epochs`, `min_epochs`·`eta`, `min_epochs`·`eta`², … epochs, summed over its runs, unless it is among the "
    "best 1/`eta` of the configurations that have reached this number",
    source="ASHA, Li et al., MLSys 2020 (stopping variant)",
    make=make,
    options=HalvingOptions,
)
