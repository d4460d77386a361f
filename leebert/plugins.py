"""Registries of named plugins (methods, exit criteria, metrics, …), which other packages extend.

A registry is a mapping from names to plugins. It contains this project's plugins, whose modules are imported at first use;
plugins of installed packages, declared by entry points; and plugins added by :meth:`Registry.register`. The environment variable
``LEEBERT_PLUGINS`` names modules, separated by commas, that are imported before a look-up and call ``register``. It is for
code that is not installed as a package.

Example:
    The ``pyproject.toml`` of a package with an exit criterion::

        [project.entry-points."leebert.criteria"]
        margin = "my_package.margin:MARGIN"
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from types import FunctionType
from typing import Any, Generic, TypeVar

from leebert.errors import ConfigError, nearest

#: Modules that register plugins, separated by commas.
VARIABLE = "LEEBERT_PLUGINS"

Plugin = TypeVar("Plugin")

#: Registries by kind, of imported modules.
REGISTRIES: dict[str, Registry[Any]] = {}


@dataclasses.dataclass(frozen=True)
class Origin:
    """The origin of a plugin from another package.

    Attributes:
        module: The dotted name of the module that defines it.
        distribution: The installed package and its version, as ``name 1.0``; None for registered plugins.
    """

    module: str
    distribution: str | None = None

    def __str__(self) -> str:
        return f"{self.distribution} ({self.module})" if self.distribution else self.module


class Registry(Mapping[str, Plugin], Generic[Plugin]):
    """The plugins of one kind by name: built-in plugins in their order, then plugins of other packages by name.

    Args:
        kind: The singular in messages, such as ``exit criterion``.
        group: The group of entry points in which other packages declare their plugins: ``leebert.criteria``.
        package: The package that has a module for each built-in plugin.
        attribute: The variable of such a module that holds the plugin.
        modules: Built-in names and the names of their modules.
        check: Checks a plugin of another package; raises ValueError or TypeError with one sentence.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        package: str,
        attribute: str,
        modules: Mapping[str, str],
        check: Callable[[str, Any], None] | None = None,
    ) -> None:
        self.kind, self.group = kind, group
        self._package, self._attribute, self._modules, self._check = package, attribute, dict(modules), check
        self._plugins: dict[str, Plugin] = {}
        self._registered: dict[str, Origin] = {}
        self._entry_points: dict[str, metadata.EntryPoint] | None = None
        self._changes = 0
        REGISTRIES.setdefault(kind, self)

    @property
    def built_in(self) -> tuple[str, ...]:
        """Names of the built-in plugins, in their order."""
        return tuple(self._modules)

    def register(self, name: str, plugin: Plugin, *, module: str | None = None) -> Plugin:
        """Register a plugin for this process and for the sweeps that it starts.

        Args:
            name: Its name in configurations.
            plugin: The plugin.
            module: Dotted name of its module; None: the module of a class or function, else the caller's.

        Returns:
            The plugin.

        Raises:
            ConfigError: Another plugin has this name, or the plugin is invalid.
        """
        defining = (
            plugin.__module__ if isinstance(plugin, type | FunctionType) else sys._getframe(1).f_globals["__name__"]
        )
        origin = Origin(module or defining)
        if self._plugins.get(name) is plugin:
            return plugin
        existing = self._registered.get(name)
        if name in self._modules or (existing is not None and existing != origin):
            self._clash(name, [str(existing) if existing else "leebert", str(origin)])
        self._fits(name, plugin, origin)
        self._plugins[name], self._registered[name] = plugin, origin
        self._changes += 1
        return plugin

    @property
    def changes(self) -> int:
        """Number of added and removed plugins, to invalidate values computed from all plugins."""
        self._outside()  # imports modules that register plugins
        return self._changes

    def unregister(self, name: str) -> None:
        """Remove a plugin added by :meth:`register`; other names are ignored."""
        if self._registered.pop(name, None) is not None:
            del self._plugins[name]
            self._changes += 1

    def origin(self, name: str) -> Origin | None:
        """Return the origin of a plugin; None for built-in plugins."""
        if name in self._modules:
            return None
        if name in self._registered:
            return self._registered[name]
        point = self._outside()[name]
        return Origin(point.module, f"{point.dist.name} {point.dist.version}" if point.dist else None)

    def __getitem__(self, name: str) -> Plugin:
        if name not in self._plugins:
            self._plugins[name] = self._load(name)
        return self._plugins[name]

    def __iter__(self) -> Iterator[str]:
        outside = self._outside()  # first, since it imports modules that register plugins
        return iter([*self._modules, *sorted({*self._registered, *outside})])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in self._modules or name in self._outside() or name in self._registered

    def unknown(self, name: str) -> str:
        """Return the message for an unknown name: existing names, and what to do."""
        return (
            f"{self.kind} {name!r} is not known here ({', '.join(self)}){nearest(name, self)}; {unknown_advice(name)}"
        )

    def _load(self, name: str) -> Plugin:
        if name in self._modules:
            module = importlib.import_module(f"{self._package}.{self._modules[name]}")
            plugin: Plugin = getattr(module, self._attribute)
            return plugin
        point = self._outside().get(name)
        if name in self._registered:
            return self._plugins[name]
        if point is None:
            raise KeyError(name)
        origin = self.origin(name)
        try:
            plugin = point.load()
        except Exception as error:  # imports of other packages can raise anything
            raise ConfigError(
                f"{self.kind} {name!r} of {origin} can't be loaded ({type(error).__name__}: {error}); fix or remove that package"
            ) from error
        self._fits(name, plugin, origin)
        return plugin

    def _fits(self, name: str, plugin: Any, origin: object) -> None:
        if self._check is None:
            return
        try:
            self._check(name, plugin)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.kind} {name!r} of {origin} does not fit: {error}") from None

    def _outside(self) -> dict[str, metadata.EntryPoint]:
        """Return the entry points of this kind by name. Raises ConfigError if two packages claim one name."""
        load_modules()
        if self._entry_points is None:
            points: dict[str, metadata.EntryPoint] = {}
            for point in metadata.entry_points(group=self.group):
                earlier = points.setdefault(point.name, point)
                if point.name in self._modules:
                    self._clash(point.name, ["leebert", _claimant(point)])
                if earlier is not point and _claimant(earlier) != _claimant(point):
                    self._clash(point.name, [_claimant(earlier), _claimant(point)])
            self._entry_points = points
        return self._entry_points

    def _clash(self, name: str, claimants: Sequence[str]) -> None:
        first, second = claimants
        raise ConfigError(f"{self.kind} {name!r} is claimed by {first} and by {second}; rename one, or uninstall it")


def _claimant(point: metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.module


def unknown_advice(name: str) -> str:
    """Return what to do about an unknown name."""
    return f"if a package brings {name!r}, install that package, or name in {VARIABLE} a module that registers it"


def load_modules() -> None:
    """Import the modules that ``LEEBERT_PLUGINS`` names.

    Raises:
        ConfigError: A module can't be imported, or registers an invalid plugin.
    """
    for name in filter(None, (plugin.strip() for plugin in os.environ.get(VARIABLE, "").split(","))):
        if name in sys.modules:
            continue
        try:
            importlib.import_module(name)
        except ConfigError as error:  # from `register`, with what to do
            raise ConfigError(f"{VARIABLE}: module {name}: {error}") from error
        except Exception as error:
            missing = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
            cure = "correct that module"
            if missing or not all(plugin.isidentifier() for plugin in name.split(".")):
                cure = "correct the name (no path, no .py; commas between names), install it, or set PYTHONPATH to its folder"
            raise ConfigError(
                f"{VARIABLE}: module {name} can't be imported ({type(error).__name__}: {error}); {cure}"
            ) from error
