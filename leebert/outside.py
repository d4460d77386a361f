"""Record which plugins of other packages a sweep or a model uses, and report missing ones.

The record is a mapping from kind and name, ``method often``, to the origin: ``leebert-extension 1.0 (extension.often)``
for an installed package, ``my_plugins (code 0123456789abcdef)`` for another module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from leebert.errors import ConfigError
from leebert.plugins import Origin, registry_of


def origin_of(key: str) -> Origin | None:
    """Return the origin of an installed plugin by kind and name; None for built-in and missing plugins.

    Raises:
        ConfigError: There is no such kind, or two packages claim the name.
    """
    kind, _, name = key.rpartition(" ")
    registry = registry_of(kind)
    return registry.origin(name) if name in registry else None


def origins(keys: Iterable[str]) -> dict[str, str]:
    """Record the plugins of other packages among these kinds and names.

    Args:
        keys: Such as ``method often``.

    Returns:
        The record, without built-in plugins.
    """
    return {key: str(origin) for key in dict.fromkeys(keys) if (origin := origin_of(key)) is not None}


def same_origin(before: str, after: str) -> bool:
    """Whether two recorded origins of a plugin agree; for registered plugins, older versions recorded only the module."""
    versioned = " " in before and " " in after
    return before == after if versioned else _module(before) == _module(after)


def _module(origin: str) -> str:
    """Return the module of a recorded origin: the text before `(code …)`, or in brackets after package and version."""
    before, _, within = origin.partition(" (")
    return within.rstrip(")") if " " in before else before


def refuse_missing(record: Any, file: str) -> None:
    """Raise ConfigError if a recorded plugin is not installed here.

    Args:
        record: A record of :func:`origins`; anything but a mapping counts as empty.
        file: The file that holds the record, for messages.

    Raises:
        ConfigError: One line names the plugin, the names that exist here, and where the plugin came from; or its kind is
            unknown.
    """
    for key, origin in record.items() if isinstance(record, Mapping) else ():
        kind, _, name = str(key).rpartition(" ")
        try:
            registry = registry_of(kind)
        except ConfigError as error:
            raise ConfigError(f"{file}: parts: {key}: {error}; use the version of leebert that wrote it") from None
        if name not in registry:
            raise ConfigError(f"{file}: {registry.unknown(name)}; it came from {origin}")
