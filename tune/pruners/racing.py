"""Racing (Maron and Moore, 1994; on paired blocks: Birattari et al., 2002): whoever is clearly behind the leader stops.

How far behind is clear is learnt from the sweep itself. At a place (cell, epoch) a complete configuration c has the
score x_c, at the end y_c; its gain is y_c - x_c. What the difference of two configurations still changes after the place
is the difference of their gains, in which the folds cancel; its root mean square over all pairs is √2·s, s being the
sample standard deviation of the n gains. So a configuration stops when it is behind the best complete one, on the same
cells at the same epoch, by more than

    t(1 - alpha; n - 1) · √2 · s,

the one-sided margin that such a difference makes up with probability alpha only, if gains are normal. Early, where
scores say little, s is large and nobody stops; late it is small. With few complete configurations t is large.
"""

from __future__ import annotations

import dataclasses
import math

from pydantic import Field

from tune.pruners.places import Places
from tune.space import SweepSpec
from tune.space.parts import Number, PrunerRow, Warmed
from tune.store.history import History
from tune.store.ranking import complete, mean_and_std

#: Complete configurations before anyone is stopped: two alike would show no spread at all.
STARTUP = 3


@dataclasses.dataclass(frozen=True)
class RacingPruner:
    """Stops a configuration whose chance to catch up with the best complete one is below `alpha`."""

    places: Places
    alpha: float = 0.1
    min_epochs: int = 1

    def decide(self, history: History, config_id: str, cell: tuple[int, int], epoch: int) -> bool:
        asked, reached = self.places.reached(history, config_id, cell, epoch)
        place = reached[-1]
        own = self.places.score(asked, place)
        rivals = [(self.places.score(c, self.places.end), self.places.score(c, place)) for c in complete(history)]
        pairs = [(y, x) for y, x in rivals if y is not None and x is not None]
        if own is None or place < self.min_epochs or len(pairs) < STARTUP:
            return True
        _, leader = max(pairs)
        return leader - own <= self.margin([y - x for y, x in pairs])

    def margin(self, gains: list[float]) -> float:
        """How far behind a configuration may be where the complete ones went on to gain so much."""
        from scipy import special  # a second to import, and spaces that name a pruner are checked without it

        t = float(special.stdtrit(len(gains) - 1, 1 - self.alpha))
        return t * math.sqrt(2) * mean_and_std(gains).std


class RacingOptions(Warmed):
    """The options of racing."""

    alpha: Number = Field(
        default=0.1,
        gt=0,
        lt=0.5,
        description="accepted probability that a stopped configuration would have caught up with the best",
    )


def make(spec: SweepSpec, options: RacingOptions) -> RacingPruner:
    """Make the pruner of a space."""
    return RacingPruner(Places.of(spec), options.alpha, options.min_epochs)


PRUNER = PrunerRow(
    name="racing",
    title="when it trails the best complete configuration by more than configurations of this sweep are likely to make up by "
    "the end (one-sided t margin at level `alpha`); for sweeps where only the best configuration matters",
    source="Maron and Moore, NeurIPS 1994; Birattari et al., GECCO 2002",
    make=make,
    options=RacingOptions,
)
