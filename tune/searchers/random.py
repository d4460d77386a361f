"""Random search: seeded uniform draws, equal for all methods, so that their configurations can be compared in pairs."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from random import Random
from typing import Any

from tune.searchers.listing import Listing
from tune.space import SweepSpec, config_id
from tune.space.plugins import Drawn, SearcherPlugin
from tune.store.history import History

#: After this many consecutive draws without a new configuration, a finite space is enumerated instead.
_FRUITLESS = 200


def draws(spec: SweepSpec, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield distinct effective configurations, without end or until a finite space is exhausted.

    Each draw of values is used for all methods in turn. Comparisons of methods need equal hyperparameters, which independent
    draws from a range would never give.

    Args:
        spec: The space.
        seed: The seed of the draws.
    """
    suggested: set[str] = set()
    fruitless = 0
    for i in itertools.count():
        if fruitless == _FRUITLESS:
            break
        rng = Random(f"{seed}/{i}")  # a string seed gives equal draws in every process and version of Python
        chosen = {option: values.draw(rng) for option, values in spec.space.items()}
        fruitless += 1
        for algorithm in spec.algorithms:
            values = spec.configuration(algorithm, chosen)
            if (identity := config_id(values)) not in suggested:
                suggested.add(identity)
                fruitless = 0
                yield values
    if spec.size is not None:
        yield from (values for values in spec.configurations() if config_id(values) not in suggested)


@dataclasses.dataclass(frozen=True)
class RandomSearcher:
    """Suggests the first draw that is not in the history; more configurations continue the same sequence.

    Attributes:
        spec: The search space.
        seed: Random seed.
    """

    spec: SweepSpec
    seed: int = 0

    def suggest(self, history: History) -> dict[str, Any] | None:
        if self.spec.limit is not None and len(history) >= self.spec.limit:
            return None
        if self.spec.size is not None and len(history) >= self.spec.size:
            return None  # without drawing
        return self._listing.first_new(history)

    @functools.cached_property
    def _listing(self) -> Listing:
        return Listing(draws(self.spec, self.seed))


SEARCHER = SearcherPlugin(
    name="random",
    title="random values of the options, without repetition; each draw is tried with every method",
    source="Bergstra and Bengio, JMLR 2012; the pairing of methods is ours",
    make=lambda spec, options: RandomSearcher(spec, options.seed),
    options=Drawn,
    needs="if an option is a range: `configurations` or `budget.trials`",
    reads_scores=False,
)
