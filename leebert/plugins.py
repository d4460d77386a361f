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
import functools
import hashlib
import importlib
import os
import sys
import warnings
from collections.abc import Callable, ItemsView, Iterator, Mapping, Sequence, ValuesView
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any, Generic, TypeVar

from leebert.errors import ConfigError, nearest
from leebert.plugin_checks import check_plugin

#: Modules that register plugins, separated by commas.
VARIABLE = "LEEBERT_PLUGINS"

Plugin = TypeVar("Plugin")

#: The module and the variable of each kind's registry.
_HOMES: Mapping[str, tuple[str, str]] = {
    "method": ("leebert.methods", "METHODS"),
    "exit criterion": ("leebert.exits", "CRITERIA"),
    "metric": ("leebert.metrics", "METRICS"),
    "searcher": ("tune.space.plugins", "SEARCHERS"),
    "pruner": ("tune.space.plugins", "PRUNERS"),
}


@dataclasses.dataclass(frozen=True)
class Origin:
    """The origin of a plugin from another package.

    Attributes:
        module: The dotted name of the module that defines it.
        distribution: The installed package that contains the module, and its version, as ``name 1.0``; None if none does.
        code: A digest of the module's source if no installed package contains it; None without a source file.
    """

    module: str
    distribution: str | None = None
    code: str | None = None

    def __str__(self) -> str:
        if self.distribution:
            return f"{self.distribution} ({self.module})"
        return f"{self.module} (code {self.code})" if self.code else self.module


class Registry(Mapping[str, Plugin], Generic[Plugin]):
    """The plugins of one kind by name: built-in plugins in their order, then plugins of other packages by name.

    A plugin is loaded when its name is looked up. :meth:`values` and :meth:`items` leave out what can't be loaded, with a
    warning for each, so that one broken package does not stop what needs no plugin of it.

    Args:
        kind: The singular in messages, such as ``exit criterion``.
        group: The group of entry points in which other packages declare their plugins: ``leebert.criteria``.
        package: The package that has a module for each built-in plugin.
        attribute: The variable of such a module that holds the plugin.
        modules: Built-in names and the names of their modules.
        plugin_class: The class of the plugins, with their name as `name`.
        check: Raises ValueError or TypeError with one sentence where a plugin of that class does not fit.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        package: str,
        attribute: str,
        modules: Mapping[str, str],
        plugin_class: type[Plugin],
        check: Callable[[Plugin], None] = lambda plugin: None,
    ) -> None:
        self.kind, self.group = kind, group
        self._package, self._attribute, self._modules = package, attribute, dict(modules)
        self._plugin_class, self._refuse = plugin_class, check
        self._plugins: dict[str, Plugin] = {}
        self._registered: dict[str, Origin] = {}
        self._entry_points: dict[str, list[metadata.EntryPoint]] | None = None
        self._loading: set[str] = set()
        self._skipped: set[str] = set()

    @property
    def built_in(self) -> tuple[str, ...]:
        """Names of the built-in plugins, in their order."""
        return tuple(self._modules)

    def own(self) -> list[Plugin]:
        """Return the built-in plugins in their order, also those whose name another package claims."""
        return [self._own(name) for name in self._modules]

    def _own(self, name: str) -> Plugin:
        module = importlib.import_module(f"{self._package}.{self._modules[name]}")
        plugin: Plugin | None = getattr(module, self._attribute, None)
        if plugin is None:
            raise ConfigError(
                f"{self.kind} {name!r}: module {module.__name__} has no variable {self._attribute}; bind the plugin to it"
            )
        if (own_name := getattr(plugin, "name", name)) != name:
            raise ConfigError(
                f"{self.kind} {name!r}: the {self._attribute} of {module.__name__} has the name {own_name!r}; make both equal"
            )
        return plugin

    def register(self, plugin: Plugin, *, module: str | None = None) -> Plugin:
        """Add a plugin under its name, for this process and for the sweeps that it starts.

        Args:
            plugin: The plugin. In a notebook or a script, one of the same name replaces it.
            module: The dotted name of the module that registers it when it is imported, which trials' processes do. None:
                the module whose import calls this method, else the module of the plugin's functions.

        Returns:
            The plugin.

        Raises:
            ConfigError: Another plugin has this name, or the plugin is invalid.
        """
        name = getattr(plugin, "name", None)
        origin = Origin(module or _module_of(plugin, sys._getframe(1)))
        if not isinstance(name, str):
            raise ConfigError(f"{self.kind} {plugin!r} of {origin} has no name; set its attribute `name`")
        points = self._points().get(name, [])
        for point in points:
            if not _declares(point, plugin, origin):
                self._clash(name, [_claimant(point), str(origin)])
        if name in self._modules and origin.module == f"{self._package}.{self._modules[name]}":
            raise ConfigError(
                f"{self.kind} {name!r} is built in: {origin} binds it to {self._attribute} and does not call register"
            )
        if name in self._modules:
            self._clash(name, ["leebert", str(origin)])
        held = self._registered.get(name)
        if points or (held is not None and self._plugins[name] is plugin):
            return plugin
        if held is not None and held.module != origin.module:
            self._clash(name, [held.module, origin.module])
        if held is not None and origin.module != "__main__":
            raise ConfigError(
                f"{self.kind} {name!r} is registered by {origin} already, as another plugin; rename one, or unregister it first"
            )
        self._fits(name, plugin, origin)
        self._plugins[name] = plugin
        # The source as it was imported: the file can change afterwards.
        self._registered[name] = dataclasses.replace(origin, code=_source_digest(origin.module))
        return plugin

    def unregister(self, name: str) -> None:
        """Remove a plugin added by :meth:`register`; other names are ignored."""
        if self._registered.pop(name, None) is not None:
            del self._plugins[name]

    def origin(self, name: str) -> Origin | None:
        """Return the origin of a plugin; None for built-in plugins."""
        if name in self._modules:
            return None
        if name in self._registered:
            registered = self._registered[name]
            owner = _owner(registered.module)
            return Origin(registered.module, owner) if owner else registered
        point = self._outside()[name][0]
        self._refuse_clash(name)
        return Origin(point.module, f"{point.dist.name} {point.dist.version}" if point.dist else None)

    def __getitem__(self, name: str) -> Plugin:
        if name not in self._plugins:
            self._plugins[name] = self._load(name)
        return self._plugins[name]

    def __iter__(self) -> Iterator[str]:
        outside = self._outside()  # first: it imports what registers plugins
        return iter([*self._modules, *sorted({*self._registered, *outside} - {*self._modules})])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        """Whether there is a plugin of that name; raises ConfigError where two packages claim it."""
        outside = self._outside()
        self._refuse_clash(name)
        return name in self._modules or name in outside or name in self._registered

    def items(self) -> ItemsView[str, Plugin]:
        """Return the plugins that can be loaded, by name. Each other one causes a warning, once per process."""
        return {name: plugin for name in self if (plugin := self.find(name)) is not None}.items()

    def values(self) -> ValuesView[Plugin]:
        """Return the plugins that can be loaded, as :meth:`items` does."""
        return dict(self.items()).values()

    def find(self, name: str) -> Plugin | None:
        """Return the plugin of a name; None if there is none, or, with a warning, if it cannot be loaded."""
        if name in self._loading or name in self._skipped:
            return None
        try:
            return self.get(name)
        except ConfigError as error:
            self._skipped.add(name)
            warnings.warn(f"skipped: {error}", stacklevel=1)
            return None

    def require(self, name: str) -> Plugin:
        """Return the plugin of a name.

        Raises:
            ConfigError: There is no plugin of this name; the message lists the existing names.
        """
        if name not in self:
            raise ConfigError(self.unknown(name))
        return self[name]

    def unknown(self, name: str) -> str:
        """Return the message for an unknown name: existing names, and what to do."""
        return (
            f"{self.kind} {name!r} is not known here ({', '.join(self)}){nearest(name, self)}; {unknown_advice(name)}"
        )

    def check(self, plugin: Plugin) -> None:
        """Raise ConfigError where a plugin does not fit."""
        self._fits(str(getattr(plugin, "name", "")), plugin, type(plugin).__module__)

    def _load(self, name: str) -> Plugin:
        if name in self._modules:
            self._refuse_clash(name)
            return self._own(name)
        outside = self._outside()
        if name in self._registered:
            return self._plugins[name]
        if name not in outside:
            raise KeyError(name)
        self._refuse_clash(name)
        origin = self.origin(name)
        self._loading.add(name)
        try:
            plugin: Plugin = outside[name][0].load()
        except Exception as error:  # whatever another package does when it is imported
            raise ConfigError(
                f"{self.kind} {name!r} of {origin} can't be loaded ({type(error).__name__}: {error}); fix or remove that package"
            ) from error
        finally:
            self._loading.discard(name)
        self._fits(name, plugin, origin)
        return plugin

    def _fits(self, name: str, plugin: Any, origin: object) -> None:
        try:
            check_plugin(name, plugin, self._plugin_class)
            self._refuse(plugin)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.kind} {name!r} of {origin} does not fit: {error}") from None

    def _outside(self) -> dict[str, list[metadata.EntryPoint]]:
        """The entry points of this kind by name, after the import of the modules that register plugins."""
        load_modules()
        return self._points()

    def _points(self) -> dict[str, list[metadata.EntryPoint]]:
        """The entry points of this kind by name, one per package that claims the name."""
        if self._entry_points is None:
            points: dict[str, dict[str, metadata.EntryPoint]] = {}
            for point in metadata.entry_points(group=self.group):
                points.setdefault(point.name, {}).setdefault(_claimant(point), point)
            self._entry_points = {name: list(claims.values()) for name, claims in points.items()}
        return self._entry_points

    def _refuse_clash(self, name: object) -> None:
        claimants = [_claimant(point) for point in self._points().get(str(name), ())]
        if name in self._modules:
            claimants.insert(0, "leebert")
        if len(claimants) > 1:
            self._clash(str(name), claimants)

    def _clash(self, name: str, claimants: Sequence[str]) -> None:
        raise ConfigError(
            f"{self.kind} {name!r} is claimed by {' and by '.join(claimants)}; rename one, or uninstall it"
        )


def registry_of(kind: str) -> Registry[Any]:
    """Return the registry of a kind of plugins.

    Args:
        kind: What a plugin is called: ``method``, ``exit criterion``, ``metric``, ``searcher`` or ``pruner``.

    Raises:
        ConfigError: There is no such kind.
    """
    if kind not in _HOMES:
        raise ConfigError(f"there is no kind of plugin {kind!r}, only {', '.join(_HOMES)}{nearest(kind, _HOMES)}")
    module, variable = _HOMES[kind]
    registry: Registry[Any] = getattr(importlib.import_module(module), variable)
    return registry


def _claimant(point: metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.module


def _declares(point: metadata.EntryPoint, plugin: Any, origin: Origin) -> bool:
    """Whether an entry point names this very plugin: its module registers it, too, perhaps while it is imported."""
    if origin.module != point.module:
        return False
    declared: Any = sys.modules.get(point.module)
    for attribute in filter(None, point.attr.split(".")):
        declared = getattr(declared, attribute, None)
    return declared is None or declared is plugin


def _module_of(plugin: Any, caller: FrameType) -> str:
    """The module that registers a plugin when it is imported.

    Args:
        plugin: The plugin.
        caller: The frame that registers it.
    """
    name = str(caller.f_globals.get("__name__", ""))
    if name == "__main__" or (caller.f_code.co_name == "<module>" and not _is_own(name)):
        return name
    return next((module for module in _modules_of(plugin) if not _is_own(module)), name)


def _modules_of(value: Any) -> Iterator[str]:
    """The modules of the functions and classes among the fields of a plugin, those of a metric's measures included."""
    for field in vars(value).values() if hasattr(value, "__dict__") else ():
        while isinstance(field, functools.partial):
            field = field.func
        if callable(field):
            yield str(getattr(field, "__module__", ""))
        for inner in field.values() if isinstance(field, Mapping) else ():
            yield from _modules_of(inner)


def _is_own(module: str) -> bool:
    return module.partition(".")[0] in ("leebert", "tune", "")


def _source(module: str) -> Path | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).resolve() if file else None


def _source_digest(module: str) -> str | None:
    """Return the first 16 hexadecimal digits of the SHA-256 of an imported module's source; None without a file."""
    try:
        source = _source(module)
        return hashlib.sha256(source.read_bytes()).hexdigest()[:16] if source else None
    except OSError:  # such as a module of a zip file
        return None


def _owner(module: str) -> str | None:
    """Return the installed package that contains a module, and its version, as ``name 1.0``; None if none does.

    A checkout that is installed in place does not count, since its version stays the same when its code changes.
    """
    source = _source(module)
    for name in _packages().get(module.partition(".")[0], ()) if source else ():
        distribution = metadata.distribution(name)
        if source and source.is_relative_to(Path(str(distribution.locate_file(""))).resolve()):
            return f"{distribution.name} {distribution.version}"
    return None


@functools.cache
def _packages() -> Mapping[str, Sequence[str]]:
    return metadata.packages_distributions()


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
