"""A cache of configurations in a fixed order, so that a searcher does not recompute them for every suggestion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tune.space import config_id
from tune.store.history import History


class Listing:
    """A cached sequence of configurations, computed when first needed.

    Args:
        configurations: The configurations, in order.
    """

    def __init__(self, configurations: Iterable[dict[str, Any]]) -> None:
        self._cached: list[tuple[str, dict[str, Any]]] = []
        self._remaining = iter(configurations)

    def first_new(self, history: History) -> dict[str, Any] | None:
        """Return the first configuration that is not in the history; None if there are no more."""
        suggested = {configuration.id for configuration in history}
        return next((values for identity, values in self if identity not in suggested), None)

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        yield from self._cached
        for values in self._remaining:
            self._cached.append((config_id(values), values))
            yield self._cached[-1]
