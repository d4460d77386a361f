"""Which parts of other packages a sweep or a model uses, recorded by name and origin, and what to say where one is missing.

The record is a mapping from kind and name, ``method often``, to the origin: ``leebert-extension 1.0 (extension.often)``
of an installed package, ``my_parts (code 0123456789abcdef)`` of another module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from leebert.errors import ConfigError
from leebert.plugins import REGISTRIES, Origin


def origin_of(key: str) -> Origin | None:
    """Return where a part comes from here, by its kind and name; None for a built-in part and one that is missing."""
    kind, _, name = key.rpartition(" ")
    registry = REGISTRIES.get(kind)
    return registry.origin(name) if registry is not None and name in registry else None


def origins(keys: Iterable[str]) -> dict[str, str]:
    """Record the parts of other packages among these kinds and names.

    Args:
        keys: Such as ``method often``.

    Returns:
        The record: built-in parts are left out.
    """
    return {key: str(origin) for key in dict.fromkeys(keys) if (origin := origin_of(key)) is not None}


def same_origin(before: str, after: str) -> bool:
    """Whether two records of one part agree; an older version recorded a registered part's module alone."""
    versioned = " " in before and " " in after
    return before == after if versioned else _module(before) == _module(after)


def _module(origin: str) -> str:
    """The module of a record: the text before `(code …)`, or what is in brackets after a package and its version."""
    before, _, within = origin.partition(" (")
    return within.rstrip(")") if " " in before else before


def refuse_missing(record: Any, where: str) -> None:
    """Refuse what uses a part that is not installed here.

    Args:
        record: What :func:`origins` made; None, or what is no mapping, holds no part.
        where: The file that holds the record.

    Raises:
        ConfigError: One line names the part, the names that exist here, and where the part came from.
    """
    for key, origin in record.items() if isinstance(record, Mapping) else ():
        kind, _, name = str(key).rpartition(" ")
        registry = REGISTRIES.get(kind)
        if registry is not None and name not in registry:
            raise ConfigError(f"{where}: {registry.unknown(name)}; it came from {origin}")
