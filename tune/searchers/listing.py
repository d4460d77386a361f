"""Configurations in a fixed order, each made once: a searcher that keeps none of them would make all of them every time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tune.space import config_id
from tune.store.history import History


class Listing:
    """The configurations of an iterable, made when they are first needed."""

    def __init__(self, configurations: Iterable[dict[str, Any]]) -> None:
        self._made: list[tuple[str, dict[str, Any]]] = []
        self._rest = iter(configurations)

    def first_new(self, history: History) -> dict[str, Any] | None:
        """The first that the history doesn't hold; None when there are no more."""
        suggested = {configuration.id for configuration in history}
        return next((values for identity, values in self if identity not in suggested), None)

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        yield from self._made
        for values in self._rest:
            self._made.append((config_id(values), values))
            yield self._made[-1]
