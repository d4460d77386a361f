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
import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import FunctionType
from typing import Any, Generic, TypeVar

from leebert.errors import ConfigError, nearest

#: Modules that register parts, separated by commas.
VARIABLE = "LEEBERT_PLUGINS"

Part = TypeVar("Part")

#: The registries by kind, those whose modules were imported.
REGISTRIES: dict[str, Registry[Any]] = {}


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a part from outside comes from.

    Attributes:
        module: The dotted name of the module that defines it.
        distribution: The installed package that has the module, and its version, as ``name 1.0``; None if none has.
        code: A digest of the module's source, where no installed package has it; None if it has no file either.
    """

    module: str
    distribution: str | None = None
    code: str | None = None

    def __str__(self) -> str:
        if self.distribution:
            return f"{self.distribution} ({self.module})"
        return f"{self.module} (code {self.code})" if self.code else self.module


class Registry(Mapping[str, Part], Generic[Part]):
    """The parts of one kind by name: built-in ones first, in their order, then those from outside, by name.

    Args:
        kind: What a part is called in messages, in the singular: ``exit criterion``.
        group: The group of entry points in which other packages declare their parts: ``leebert.criteria``.
        package: The package that has a module for each built-in part.
        attribute: The variable of such a module that holds the part.
        modules: Built-in names and the names of their modules.
        check: Raises ValueError or TypeError with one sentence where a part from outside does not fit.
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
        self._parts: dict[str, Part] = {}
        self._registered: dict[str, Origin] = {}
        self._entry_points: dict[str, metadata.EntryPoint] | None = None
        self._changes = 0
        REGISTRIES.setdefault(kind, self)

    @property
    def built_in(self) -> tuple[str, ...]:
        """The names of this project's own parts, in their order."""
        return tuple(self._modules)

    def register(self, name: str, part: Part, *, module: str | None = None) -> Part:
        """Add a part under a name, for this process and for the sweeps that it starts.

        Args:
            name: What configurations call it.
            part: The part.
            module: The dotted name of the module that it comes from; None: that of a class or function, else the caller's.

        Returns:
            The part.

        Raises:
            ConfigError: The name belongs to another part, or the part does not fit.
        """
        own = part.__module__ if isinstance(part, type | FunctionType) else sys._getframe(1).f_globals["__name__"]
        origin = Origin(module or own)
        if self._parts.get(name) is part:
            return part
        held = self._registered.get(name)
        if name in self._modules or (held is not None and held.module != origin.module):
            self._clash(name, [held.module if held else "leebert", origin.module])
        self._fits(name, part, origin)
        # The digest is of the source as it was imported, not as it is when somebody asks.
        self._parts[name] = part
        self._registered[name] = dataclasses.replace(origin, code=_source_digest(origin.module))
        self._changes += 1
        return part

    @property
    def changes(self) -> int:
        """How often parts were added or removed: what is made from all parts stays valid while it stays the same."""
        self._outside()  # which imports what registers parts
        return self._changes

    def unregister(self, name: str) -> None:
        """Remove a part that was added by :meth:`register`; a name that was not is left as it is."""
        if self._registered.pop(name, None) is not None:
            del self._parts[name]
            self._changes += 1

    def origin(self, name: str) -> Origin | None:
        """The origin of a part; None for a built-in one."""
        if name in self._modules:
            return None
        if name in self._registered:
            registered = self._registered[name]
            owner = _owner(registered.module)
            return Origin(registered.module, owner) if owner else registered
        point = self._outside()[name]
        return Origin(point.module, f"{point.dist.name} {point.dist.version}" if point.dist else None)

    def __getitem__(self, name: str) -> Part:
        if name not in self._parts:
            self._parts[name] = self._load(name)
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        outside = self._outside()  # first: it imports what registers parts
        return iter([*self._modules, *sorted({*self._registered, *outside})])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in self._modules or name in self._outside() or name in self._registered

    def unknown(self, name: str) -> str:
        """One sentence for a name that no part has: the names that exist, and what to do."""
        return f"{self.kind} {name!r} is not known here ({', '.join(self)}){nearest(name, self)}; {elsewhere(name)}"

    def _load(self, name: str) -> Part:
        if name in self._modules:
            module = importlib.import_module(f"{self._package}.{self._modules[name]}")
            part: Part = getattr(module, self._attribute)
            return part
        point = self._outside().get(name)
        if name in self._registered:
            return self._parts[name]
        if point is None:
            raise KeyError(name)
        origin = self.origin(name)
        try:
            part = point.load()
        except Exception as error:  # whatever another package does when it is imported
            raise ConfigError(
                f"{self.kind} {name!r} of {origin} can't be loaded ({type(error).__name__}: {error}); mend or remove that package"
            ) from error
        self._fits(name, part, origin)
        return part

    def _fits(self, name: str, part: Any, origin: object) -> None:
        if self._check is None:
            return
        try:
            self._check(name, part)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.kind} {name!r} of {origin} does not fit: {error}") from None

    def _outside(self) -> dict[str, metadata.EntryPoint]:
        """The entry points of this kind by name; raises ConfigError where two packages claim one name."""
        load_modules()
        if self._entry_points is None:
            points: dict[str, metadata.EntryPoint] = {}
            for point in metadata.entry_points(group=self.group):
                other = points.setdefault(point.name, point)
                if point.name in self._modules:
                    self._clash(point.name, ["leebert", _claimant(point)])
                if other is not point and _claimant(other) != _claimant(point):
                    self._clash(point.name, [_claimant(other), _claimant(point)])
            self._entry_points = points
        return self._entry_points

    def _clash(self, name: str, claimants: Sequence[str]) -> None:
        first, second = claimants
        raise ConfigError(f"{self.kind} {name!r} is claimed by {first} and by {second}; rename one, or uninstall it")


def _claimant(point: metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.module


def _source(module: str) -> Path | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).resolve() if file else None


def _source_digest(module: str) -> str | None:
    """The first 16 hexadecimal digits of the SHA-256 of an imported module's source; None if it has no file."""
    try:
        source = _source(module)
        return hashlib.sha256(source.read_bytes()).hexdigest()[:16] if source else None
    except OSError:  # such as a module of a zip file
        return None


def _owner(module: str) -> str | None:
    """The installed package and version that has a module, as ``name 1.0``; None for one that stands elsewhere.

    A checkout that is installed in place stands elsewhere: its version stays the same whatever changes in it.
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
