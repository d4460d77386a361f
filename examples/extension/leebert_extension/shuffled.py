"""Shuffled: all configurations of a space of lists, in a random order given by the seed."""

from __future__ import annotations

import dataclasses
from random import Random
from typing import Any

from pydantic import Field

from leebert.config import Frozen
from tune.searchers import SearcherPlugin
from tune.space import SweepSpec, config_id
from tune.store.history import History


class Options(Frozen):
    """The options of the searcher."""

    seed: int = Field(default=0, ge=0, description="of the order")


@dataclasses.dataclass(frozen=True)
class ShuffledSearcher:
    """Propose the first configuration of the shuffled list that is not in the history."""

    spec: SweepSpec
    seed: int

    def suggest(self, history: History) -> dict[str, Any] | None:
        """Return the values of the next configuration; None if all were proposed."""
        listed = list(self.spec.configurations())
        Random(self.seed).shuffle(listed)
        suggested = {configuration.id for configuration in history}
        return next((values for values in listed if config_id(values) not in suggested), None)


SEARCHER = SearcherPlugin(
    name="shuffled",
    title="all configurations, in random order",
    source="this example",
    make=lambda spec, options: ShuffledSearcher(spec, options.seed),
    options=Options,
    needs="every option in `space` is a list",
    lists=True,
    reads_scores=False,
)
