"""Which parts of other packages a sweep or a model uses, recorded by name and origin, and what to say where one is missing.

The record is a mapping from kind and name, ``method often``, to the origin, ``leebert-extension 1.0 (extension.often)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from leebert.errors import ConfigError
from leebert.plugins import Origin, registry_of


def origin_of(key: str) -> Origin | None:
    """Return where a part comes from here, by its kind and name; None for a built-in part and one that is missing.

    Raises:
        ConfigError: There is no such kind, or two packages claim the name.
    """
    kind, _, name = key.rpartition(" ")
    registry = registry_of(kind)
    return registry.origin(name) if name in registry else None


def origins(keys: Iterable[str]) -> dict[str, str]:
    """Record the parts of other packages among these kinds and names.

    Args:
        keys: Such as ``method often``.

    Returns:
        The record: built-in parts are left out.
    """
    return {key: str(origin) for key in dict.fromkeys(keys) if (origin := origin_of(key)) is not None}


def refuse_missing(record: Any, where: str) -> None:
    """Refuse what uses a part that is not installed here.

    Args:
        record: What :func:`origins` made; None, or what is no mapping, holds no part.
        where: The file that holds the record.

    Raises:
        ConfigError: One line names the part, the names that exist here, and where the part came from; or the kind of part
            is unknown.
    """
    for key, origin in record.items() if isinstance(record, Mapping) else ():
        kind, _, name = str(key).rpartition(" ")
        try:
            registry = registry_of(kind)
        except ConfigError as error:
            raise ConfigError(f"{where}: parts: {key}: {error}; use the version of leebert that wrote it") from None
        if name not in registry:
            raise ConfigError(f"{where}: {registry.unknown(name)}; it came from {origin}")
