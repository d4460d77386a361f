"""The median rule (Golovin et al., KDD 2017), on the same cells: prune configurations below the median of earlier ones."""

from __future__ import annotations

import dataclasses
import statistics

from pydantic import Field

from tune.pruners import Places, PrunerPlugin, Warmed
from tune.space import SweepSpec
from tune.store.history import History


class Options(Warmed):
    """`min_epochs`, and the number of configurations to compare with."""

    others: int = Field(default=2, ge=1, description="fewest configurations with as many epochs")


@dataclasses.dataclass(frozen=True)
class MedianPruner:
    """Prune a configuration that scores below the median of those with as many epochs."""

    places: Places
    min_epochs: int
    others: int

    def decide(self, history: History, config_id: str, cell: tuple[int, int], epoch: int) -> bool:
        """Return whether a configuration continues after an epoch."""
        asked, reached = self.places.reached(history, config_id, cell, epoch)
        place = reached[-1]
        own = self.places.score(asked, place)
        scores = [s for c in history if c.id != config_id and (s := self.places.score(c, place)) is not None]
        if own is None or place < self.min_epochs or len(scores) < self.others:
            return True
        return own >= statistics.median(scores)


def make(spec: SweepSpec, options: Options) -> MedianPruner:
    """Make the pruner of a space."""
    return MedianPruner(Places.of(spec), options.min_epochs, options.others)


PRUNER = PrunerPlugin(
    name="median",
    title="when its score is below the median of the configurations that have trained as long",
    source="Golovin et al., KDD 2017",
    make=make,
    options=Options,
)
