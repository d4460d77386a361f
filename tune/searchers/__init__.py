"""Searchers: which configuration runs next. Each is one file and a pure function of the history and a seed; none knows Ray.

Another package adds its own by an entry point of the group ``leebert.searchers`` or by ``SEARCHERS.register``, and tests it with
:class:`tune.testing.SearcherContract`.
"""

from __future__ import annotations

from typing import Any, Protocol

from tune.space import SweepSpec
from tune.space.parts import SEARCHERS as SEARCHERS
from tune.space.parts import Drawn as Drawn
from tune.space.parts import SearcherRow as SearcherRow
from tune.store.history import History


class Searcher(Protocol):
    """Proposes configurations. It keeps no state: after a restart the same history gives the same proposals."""

    def suggest(self, history: History) -> dict[str, Any] | None:
        """The effective values of a configuration that the history doesn't hold; None when there are no more."""
        ...


def make_searcher(spec: SweepSpec) -> Searcher:
    """Make the searcher that a space names."""
    searcher: Searcher = SEARCHERS[spec.searcher.name].make(spec, spec.searcher.options)
    return searcher
