"""Searchers choose the next configuration. Each is one file and a pure function of the history and a seed, without Ray.

Another package adds its own by an entry point of the group ``leebert.searchers`` or by ``SEARCHERS.register``, and tests it with
:class:`tune.testing.SearcherContract`.
"""

from __future__ import annotations

from typing import Any, Protocol

from tune.space import SweepSpec
from tune.space.plugins import SEARCHERS as SEARCHERS
from tune.space.plugins import Drawn as Drawn
from tune.space.plugins import SearcherPlugin as SearcherPlugin
from tune.store.history import History


class Searcher(Protocol):
    """Suggests configurations without own state: after a restart, the same history gives the same suggestions."""

    def suggest(self, history: History) -> dict[str, Any] | None:
        """Suggest a configuration that is not in the history.

        Args:
            history: All configurations so far, in the order of their suggestion.

        Returns:
            Option → value, with the options that the configuration's method uses; None if there are no more configurations.
        """
        ...


def make_searcher(spec: SweepSpec) -> Searcher:
    """Make the searcher of a space."""
    searcher: Searcher = SEARCHERS[spec.searcher.name].make(spec, spec.searcher.options)
    return searcher
