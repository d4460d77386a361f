"""Grid search: every configuration, in a fixed order."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from tune.searchers.listing import Listing
from tune.space import SweepSpec
from tune.space.plugins import SearcherPlugin
from tune.store.history import History


@dataclasses.dataclass(frozen=True)
class GridSearcher:
    """Suggests the first configuration of :meth:`SweepSpec.configurations` that is not in the history."""

    spec: SweepSpec

    def suggest(self, history: History) -> dict[str, Any] | None:
        return self._listing.first_new(history)

    @functools.cached_property
    def _listing(self) -> Listing:
        return Listing(self.spec.configurations())


SEARCHER = SearcherPlugin(
    name="grid",
    title="all configurations, alternating between methods",
    source="ours",
    make=lambda spec, options: GridSearcher(spec),
    needs="every option in `space` is a list; `configurations` is not set",
    lists=True,
    reads_scores=False,
)
