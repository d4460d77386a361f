"""Registries of named parts (methods, exit criteria, metrics, …), which other packages extend.

A registry is a mapping from names to parts. It has this project's parts, each in a module of its own that is imported when
the part is first used; the parts of installed packages, found by their entry points; and what :meth:`Registry.register`
adds. The environment variable ``LEEBERT_PLUGINS`` names modules, separated by commas, that are imported before a name is
looked up and call ``register``: it serves code that is not installed as a package.

Example:
    The ``pyproject.toml`` of a package with an exit criterion of its own::

        [project.entry-points."leebert.criteria"]
        margin = "my_package.margin:MARGIN"
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import sys
import warnings
from collections.abc import Callable, ItemsView, Iterator, Mapping, Sequence, ValuesView
from importlib import metadata
from types import FrameType
from typing import Any, Generic, TypeVar

from leebert.errors import ConfigError, nearest
from leebert.plugin_checks import check_part

#: Modules that register parts, separated by commas.
VARIABLE = "LEEBERT_PLUGINS"

Part = TypeVar("Part")

#: The module and the variable of each kind's registry.
_HOMES: Mapping[str, tuple[str, str]] = {
    "method": ("leebert.methods", "METHODS"),
    "exit criterion": ("leebert.exits", "CRITERIA"),
    "metric": ("leebert.metrics", "METRICS"),
    "searcher": ("tune.space.parts", "SEARCHERS"),
    "pruner": ("tune.space.parts", "PRUNERS"),
}


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a part from outside comes from.

    Attributes:
        module: The dotted name of the module that defines it.
        distribution: The installed package and its version, as ``name 1.0``; None for a part that was registered.
    """

    module: str
    distribution: str | None = None

    def __str__(self) -> str:
        return f"{self.distribution} ({self.module})" if self.distribution else self.module


class Registry(Mapping[str, Part], Generic[Part]):
    """The parts of one kind by name: built-in ones first, in their order, then those from outside, by name.

    A part is loaded when its name is looked up. :meth:`values` and :meth:`items` leave out what can't be loaded, with a
    warning for each, so that one broken package does not stop what needs no part of it.

    Args:
        kind: What a part is called in messages, in the singular: ``exit criterion``.
        group: The group of entry points in which other packages declare their parts: ``leebert.criteria``.
        package: The package that has a module for each built-in part.
        attribute: The variable of such a module that holds the part.
        modules: Built-in names and the names of their modules.
        part_class: The class of the parts, with their name as `name`.
        check: Raises ValueError or TypeError with one sentence where a part of that class does not fit.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        package: str,
        attribute: str,
        modules: Mapping[str, str],
        part_class: type[Part],
        check: Callable[[Part], None] = lambda part: None,
    ) -> None:
        self.kind, self.group = kind, group
        self._package, self._attribute, self._modules = package, attribute, dict(modules)
        self._part_class, self._refuse = part_class, check
        self._parts: dict[str, Part] = {}
        self._registered: dict[str, Origin] = {}
        self._entry_points: dict[str, list[metadata.EntryPoint]] | None = None
        self._loading: set[str] = set()
        self._skipped: set[str] = set()

    @property
    def built_in(self) -> tuple[str, ...]:
        """The names of this project's own parts, in their order."""
        return tuple(self._modules)

    def register(self, part: Part, *, module: str | None = None) -> Part:
        """Add a part under its name, for this process and for the sweeps that it starts.

        Args:
            part: The part. In a notebook or a script, one of the same name replaces it.
            module: The dotted name of the module that registers it when it is imported, which trials' processes do. None:
                the module whose import calls this method, else the module of the part's functions.

        Returns:
            The part.

        Raises:
            ConfigError: The name belongs to another part, or the part does not fit.
        """
        name = getattr(part, "name", None)
        origin = Origin(module or _module_of(part, sys._getframe(1)))
        if not isinstance(name, str):
            raise ConfigError(f"{self.kind} {part!r} of {origin} has no name")
        points = self._points().get(name, [])
        for point in points:
            if not _declares(point, part, origin):
                self._clash(name, [_claimant(point), str(origin)])
        if name in self._modules:
            self._clash(name, ["leebert", str(origin)])
        held = self._registered.get(name)
        if points or (held is not None and self._parts[name] is part):
            return part
        if held is not None and held != origin:
            self._clash(name, [str(held), str(origin)])
        if held is not None and origin.module != "__main__":
            raise ConfigError(
                f"{self.kind} {name!r} is registered by {origin} already, as another part; rename one, or unregister it first"
            )
        self._fits(name, part, origin)
        self._parts[name], self._registered[name] = part, origin
        return part

    def unregister(self, name: str) -> None:
        """Remove a part that was added by :meth:`register`; a name that was not is left as it is."""
        if self._registered.pop(name, None) is not None:
            del self._parts[name]

    def origin(self, name: str) -> Origin | None:
        """The origin of a part; None for a built-in one."""
        if name in self._modules:
            return None
        if name in self._registered:
            return self._registered[name]
        point = self._outside()[name][0]
        self._refuse_clash(name)
        return Origin(point.module, f"{point.dist.name} {point.dist.version}" if point.dist else None)

    def __getitem__(self, name: str) -> Part:
        if name not in self._parts:
            self._parts[name] = self._load(name)
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        outside = self._outside()  # first: it imports what registers parts
        return iter([*self._modules, *sorted({*self._registered, *outside} - {*self._modules})])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        """Whether there is a part of that name; raises ConfigError where two packages claim it."""
        outside = self._outside()
        self._refuse_clash(name)
        return name in self._modules or name in outside or name in self._registered

    def items(self) -> ItemsView[str, Part]:
        """The parts that can be loaded, by name; a warning names each other one, once in a process."""
        return {name: part for name in self if (part := self.find(name)) is not None}.items()

    def values(self) -> ValuesView[Part]:
        """The parts that can be loaded, as :meth:`items`."""
        return dict(self.items()).values()

    def find(self, name: str) -> Part | None:
        """The part of a name; None where there is none, and, with a warning, where it can't be loaded."""
        if name in self._loading or name in self._skipped:
            return None
        try:
            return self.get(name)
        except ConfigError as error:
            self._skipped.add(name)
            warnings.warn(f"skipped: {error}", stacklevel=3)
            return None

    def require(self, name: str) -> Part:
        """The part of a name; raises ConfigError, with the names that exist, where there is none."""
        if name not in self:
            raise ConfigError(self.unknown(name))
        return self[name]

    def unknown(self, name: str) -> str:
        """One sentence for a name that no part has: the names that exist, and what to do."""
        return f"{self.kind} {name!r} is not known here ({', '.join(self)}){nearest(name, self)}; {elsewhere(name)}"

    def check(self, part: Part) -> None:
        """Raise ConfigError where a part does not fit."""
        self._fits(str(getattr(part, "name", "")), part, type(part).__module__)

    def _load(self, name: str) -> Part:
        if name in self._modules:
            self._refuse_clash(name)
            module = importlib.import_module(f"{self._package}.{self._modules[name]}")
            part: Part = getattr(module, self._attribute)
            return part
        outside = self._outside()
        if name in self._registered:
            return self._parts[name]
        if name not in outside:
            raise KeyError(name)
        self._refuse_clash(name)
        origin = self.origin(name)
        self._loading.add(name)
        try:
            part = outside[name][0].load()
        except Exception as error:  # whatever another package does when it is imported
            raise ConfigError(
                f"{self.kind} {name!r} of {origin} can't be loaded ({type(error).__name__}: {error}); mend or remove that package"
            ) from error
        finally:
            self._loading.discard(name)
        self._fits(name, part, origin)
        return part

    def _fits(self, name: str, part: Any, origin: object) -> None:
        try:
            check_part(name, part, self._part_class)
            self._refuse(part)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.kind} {name!r} of {origin} does not fit: {error}") from None

    def _outside(self) -> dict[str, list[metadata.EntryPoint]]:
        """The entry points of this kind by name, after the import of the modules that register parts."""
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
    """Return the registry of a kind of parts.

    Args:
        kind: What a part is called: ``method``, ``exit criterion``, ``metric``, ``searcher`` or ``pruner``.

    Raises:
        ConfigError: There is no such kind.
    """
    if kind not in _HOMES:
        raise ConfigError(f"there is no kind of part {kind!r}, only {', '.join(_HOMES)}{nearest(kind, _HOMES)}")
    module, variable = _HOMES[kind]
    registry: Registry[Any] = getattr(importlib.import_module(module), variable)
    return registry


def _claimant(point: metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.module


def _declares(point: metadata.EntryPoint, part: Any, origin: Origin) -> bool:
    """Whether an entry point names this very part: its module registers it, too, perhaps while it is imported."""
    if origin.module != point.module:
        return False
    declared: Any = sys.modules.get(point.module)
    for attribute in filter(None, point.attr.split(".")):
        declared = getattr(declared, attribute, None)
    return declared is None or declared is part


def _module_of(part: Any, caller: FrameType) -> str:
    """The module that registers a part when it is imported.

    Args:
        part: The part.
        caller: The frame that registers it.
    """
    name = str(caller.f_globals.get("__name__", ""))
    if name == "__main__" or (caller.f_code.co_name == "<module>" and not _is_own(name)):
        return name
    for value in vars(part).values() if hasattr(part, "__dict__") else ():
        while isinstance(value, functools.partial):
            value = value.func
        module = getattr(value, "__module__", None) if callable(value) else None
        if module and not _is_own(module):
            return str(module)
    return name


def _is_own(module: str) -> bool:
    return module.partition(".")[0] in ("leebert", "tune")


def elsewhere(name: str) -> str:
    """Say what to do about a name that no part has here."""
    return f"if a package brings {name!r}, install that package, or name in {VARIABLE} a module that registers it"


def load_modules() -> None:
    """Import the modules that ``LEEBERT_PLUGINS`` names.

    Raises:
        ConfigError: One of them can't be imported, or registers what does not fit.
    """
    for name in filter(None, (part.strip() for part in os.environ.get(VARIABLE, "").split(","))):
        if name in sys.modules:
            continue
        try:
            importlib.import_module(name)
        except ConfigError as error:  # of `register`, and says what to do
            raise ConfigError(f"{VARIABLE}: module {name}: {error}") from error
        except Exception as error:
            missing = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
            cure = "correct that module"
            if missing or not all(part.isidentifier() for part in name.split(".")):
                cure = "correct the name (no path, no .py; commas between names), install it, or set PYTHONPATH to its folder"
            raise ConfigError(
                f"{VARIABLE}: module {name} can't be imported ({type(error).__name__}: {error}); {cure}"
            ) from error
