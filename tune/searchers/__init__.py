"""Searchers: which configuration runs next. Each is a pure function of the history and a seed, and knows no Ray."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from tune.searchers.grid import GridSearcher
from tune.searchers.random import RandomSearcher
from tune.searchers.tpe import TpeSearcher
from tune.space import SweepSpec
from tune.store.history import History


class Searcher(Protocol):
    """Proposes configurations. It keeps no state: after a restart the same history gives the same proposals."""

    def suggest(self, history: History) -> dict[str, Any] | None:
        """The effective values of a configuration that the history doesn't hold; None when there are no more."""
        ...


SEARCHERS: dict[str, Callable[[SweepSpec], Searcher]] = {
    "grid": GridSearcher,
    "random": RandomSearcher,
    "tpe": TpeSearcher,
}


def make_searcher(spec: SweepSpec) -> Searcher:
    """The searcher that a space names."""
    return SEARCHERS[spec.searcher.name](spec)
