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

from scipy import special

from tune.pruners.places import Places
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
        t = float(special.stdtrit(len(gains) - 1, 1 - self.alpha))
        return t * math.sqrt(2) * mean_and_std(gains).std
