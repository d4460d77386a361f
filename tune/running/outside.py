"""Make the plugins of other packages that a sweep uses available in the processes of its trials.

A process finds a plugin of an installed package by its entry point, and a registered plugin by importing its module. A
plugin defined in `__main__` (a script or a notebook) is pickled and sent by value.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import pickle
import socket

from leebert.errors import LeebertError, SweepError
from leebert.methods import METHODS
from leebert.outside import origin_of, origins
from leebert.plugins import VARIABLE, load_modules, registry_of
from tune.space import SweepSpec


@dataclasses.dataclass(frozen=True)
class OutsidePlugin:
    """A plugin that trials use: kind and name, and the driver's origin of it.

    value: The pickled plugin, if its module exists in the driver's process only.
    """

    key: str
    module: str
    distribution: str | None
    value: bytes | None = None

    def __str__(self) -> str:
        return f"{self.key} of {self.distribution or self.module}"


@dataclasses.dataclass(frozen=True)
class OutsidePlugins:
    """The modules and plugins that a trial's process loads before it reads a configuration."""

    modules: str = ""
    plugins: tuple[OutsidePlugin, ...] = ()

    @classmethod
    def of(cls, spec: SweepSpec, metric: str) -> OutsidePlugins:
        """Collect the plugins that the trials of a space use; searcher and pruner run in the driver."""
        keys = sorted(origins(_of_trials(spec, metric)), key=lambda key: key.startswith("method "))
        plugins = tuple(map(_plugin, keys))  # methods last: one is valid only where its exit criterion exists
        return cls(os.environ.get(VARIABLE, ""), plugins)

    @property
    def packages(self) -> tuple[str, ...]:
        """The installed packages that the plugins come from."""
        return tuple(dict.fromkeys(plugin.distribution.split(" ")[0] for plugin in self.plugins if plugin.distribution))

    def make_available(self) -> None:
        """Add the plugins to the registries of this process.

        Raises:
            SweepError: One is missing here, or of another version; the line names plugin, package, version and node.
        """
        if self.modules:
            os.environ.setdefault(VARIABLE, self.modules)
        try:
            load_modules()
            for plugin in self.plugins:
                _make_available(plugin)
        except SweepError:
            raise
        except LeebertError as error:
            raise SweepError(f"node {socket.gethostname()}: {error}") from None


def recorded(spec: SweepSpec, metric: str) -> dict[str, str]:
    """Record all plugins of other packages that a sweep uses, for its ledger and manifest."""
    return origins([*_of_trials(spec, metric), f"searcher {spec.searcher.name}", f"pruner {spec.pruner.name}"])


def _of_trials(spec: SweepSpec, metric: str) -> list[str]:
    methods = [f"method {name}" for name in spec.algorithms]
    return [*methods, *(f"exit criterion {METHODS[name].exits}" for name in spec.algorithms), f"metric {metric}"]


def _plugin(key: str) -> OutsidePlugin:
    kind, _, name = key.rpartition(" ")
    origin = origin_of(key)
    assert origin is not None
    value = None
    if origin.module == "__main__" and not origin.distribution:
        from ray import cloudpickle

        value = cloudpickle.dumps(registry_of(kind)[name])
    return OutsidePlugin(key, origin.module, origin.distribution, value)


def _make_available(plugin: OutsidePlugin) -> None:
    kind, _, name = plugin.key.rpartition(" ")
    registry, node = registry_of(kind), socket.gethostname()
    if name not in registry and plugin.value is not None:
        registry.register(pickle.loads(plugin.value), module=plugin.module)
    elif name not in registry and plugin.distribution is None:
        try:
            importlib.import_module(plugin.module)
        except Exception as error:
            raise SweepError(
                f"node {node}: {plugin}: its module can't be imported ({type(error).__name__}: {error}); "
                f"install it there, or name a module that can be in {VARIABLE}"
            ) from None
    if name not in registry:
        cure = (
            "install it there" if plugin.distribution else f"let module {plugin.module} register it when it is imported"
        )
        raise SweepError(f"node {node}: {plugin} is missing; {cure}")
    local = registry.origin(name)
    if plugin.distribution and local is not None and local.distribution != plugin.distribution:
        raise SweepError(
            f"node {node}: {plugin.key} is of {local.distribution or local.module}, the driver's of {plugin.distribution}; "
            "install the same version on all nodes"
        )
