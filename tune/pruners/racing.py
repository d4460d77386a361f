"""Racing (Maron and Moore, 1994; on paired blocks: Birattari et al., 2002): prune configurations far behind the best one.

The margin is estimated from the sweep. At a position (run, epoch), a completed configuration c has the score x_c, at the end
y_c; its gain is y_c − x_c. The difference of two configurations changes after the position by the difference of their gains, in
which fold effects cancel. Its root mean square over all pairs is √2·s, with the sample standard deviation s of the n gains.
A configuration is pruned if it is behind the best completed one, on the same runs at the same epoch, by more than

    t(1 − alpha; n − 1) · √2 · s,

a deficit that it would make up with probability alpha, if gains are normal. Early in training s is large and no configuration
is pruned; later s is small. With few completed configurations t is large.
"""

from __future__ import annotations

import dataclasses
import math

from pydantic import Field

from tune.pruners.places import Places
from tune.space import SweepSpec
from tune.space.plugins import Number, PrunerPlugin, Warmed
from tune.store.history import History
from tune.store.ranking import completed, mean_and_std

#: Number of completed configurations before the first is pruned; two equal gains would have no spread.
STARTUP = 3


@dataclasses.dataclass(frozen=True)
class RacingPruner:
    """Prune a configuration whose probability of catching up with the best completed one is below `alpha`.

    Attributes:
        places: Positions of the sweep's epochs.
        alpha: The probability.
        min_epochs: Epochs, over all runs of a configuration, before it may be pruned.
    """

    places: Places
    alpha: float = 0.1
    min_epochs: int = 1

    def decide(self, history: History, config_id: str, cell: tuple[int, int], epoch: int) -> bool:
        configuration, reached = self.places.reached(history, config_id, cell, epoch)
        place = reached[-1]
        score = self.places.score(configuration, place)
        scores = [(self.places.score(c, self.places.end), self.places.score(c, place)) for c in completed(history)]
        pairs = [(y, x) for y, x in scores if y is not None and x is not None]
        if score is None or place < self.min_epochs or len(pairs) < STARTUP:
            return True
        _, leader = max(pairs)
        return leader - score <= self.margin([y - x for y, x in pairs])

    def margin(self, gains: list[float]) -> float:
        """Compute the largest deficit with which a configuration continues, from the gains of completed ones."""
        from scipy import special  # imported here, since it takes a second and checks of spaces don't need it

        t = float(special.stdtrit(len(gains) - 1, 1 - self.alpha))
        return t * math.sqrt(2) * mean_and_std(gains).std


class RacingOptions(Warmed):
    """The options of racing."""

    alpha: Number = Field(
        default=0.1,
        gt=0,
        lt=0.5,
        description="probability of catching up with the best, below which a configuration is pruned",
    )


def make(spec: SweepSpec, options: RacingOptions) -> RacingPruner:
    """Make the pruner of a space."""
    return RacingPruner(Places.of(spec), options.alpha, options.min_epochs)


PRUNER = PrunerPlugin(
    name="racing",
    title="when it trails the best completed configuration by more than configurations of this sweep are likely to make up by "
    "the end (one-sided t margin at level `alpha`); for sweeps where only the best configuration matters",
    source="Maron and Moore, NeurIPS 1994; Birattari et al., GECCO 2002",
    make=make,
    options=RacingOptions,
)
