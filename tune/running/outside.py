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
from collections.abc import Iterable

from leebert.errors import LeebertError, SweepError
from leebert.methods import METHODS
from leebert.outside import origin_of, origins, same_origin
from leebert.plugins import VARIABLE, Origin, load_modules, registry_of
from tune.machines.nodes import SECONDS, run_on, sentence
from tune.space import SweepSpec


@dataclasses.dataclass(frozen=True)
class OutsidePlugin:
    """A plugin that trials use.

    Attributes:
        key: Kind and name, such as ``method often``.
        origin: The driver's origin of it.
        value: The pickled plugin, if its module exists in the driver's process only.
    """

    key: str
    origin: Origin
    value: bytes | None = None

    def __str__(self) -> str:
        return f"{self.key} of {self.origin.distribution or self.origin.module}"


@dataclasses.dataclass(frozen=True)
class OutsidePlugins:
    """The modules and plugins that a trial's process loads before it reads a configuration."""

    modules: str = ""
    plugins: tuple[OutsidePlugin, ...] = ()

    @classmethod
    def of(cls, spec: SweepSpec, metric: str | None) -> OutsidePlugins:
        """Collect the plugins that the trials of a space use; searcher and pruner run in the driver.

        Args:
            spec: The search space.
            metric: The task's metric; None if it is unknown.
        """
        keys = sorted(origins(_of_trials(spec, metric)), key=lambda key: key.startswith("method "))
        plugins = tuple(map(_plugin, keys))  # methods last: one is valid only where its exit criterion exists
        return cls(os.environ.get(VARIABLE, ""), plugins)

    @property
    def needed(self) -> bool:
        """Whether a process has to load anything before it reads a configuration."""
        return bool(self.modules or self.plugins)

    def __str__(self) -> str:
        return ", ".join(f"{plugin.key} of {plugin.origin}" for plugin in self.plugins) or self.modules

    @property
    def packages(self) -> tuple[str, ...]:
        """The installed packages that the plugins come from."""
        owners = (plugin.origin.distribution for plugin in self.plugins)
        return tuple(dict.fromkeys(owner.split(" ")[0] for owner in owners if owner))

    def make_available(self) -> None:
        """Add the plugins to the registries of this process.

        Raises:
            SweepError: One is missing here, or of another version; the line names plugin, package, version and node.
        """
        if problem := self.problem():
            raise SweepError(f"node {socket.gethostname()}: {problem}")

    def problem(self) -> str:
        """Add the plugins to the registries of this process; return one sentence about the first that fails, or ``""``."""
        if self.modules:
            here = os.environ.get(VARIABLE, "").split(",")  # the node may have a list of its own
            os.environ[VARIABLE] = ",".join(filter(None, dict.fromkeys([*self.modules.split(","), *here])))
        try:
            load_modules()
            for plugin in self.plugins:
                _make_available(plugin)
        except LeebertError as error:
            return str(error)
        return ""


def problems_on(node_ids: Iterable[str], outside: OutsidePlugins, timeout: float = SECONDS) -> dict[str, str]:
    """Check on nodes that they have the plugins. Ray must be initialised.

    Args:
        node_ids: Ray's ids of the nodes.
        outside: The plugins.
        timeout: Seconds to wait for the nodes.

    Returns:
        By node, one sentence about the first plugin that it lacks; empty if it has all.
    """
    # Pickled before `run_on`, which pickles this module by value, and with it copies of the registries.
    results = run_on(node_ids, _problem, pickle.dumps(outside), timeout=timeout)
    return {node: sentence(result) if isinstance(result, Exception) else result for node, result in results.items()}


def _problem(node_id: str, outside: bytes) -> str:
    plugins: OutsidePlugins = pickle.loads(outside)
    return plugins.problem()


def check_plugins(address: str | None, outside: OutsidePlugins) -> None:
    """Check that all nodes of a cluster have the plugins that trials use. Ray must be initialised.

    Args:
        address: Address of the cluster; None: this machine only, which needs no check.
        outside: The plugins.

    Raises:
        SweepError: Nodes lack plugins, or have other versions; one line per node.
    """
    if address is None or not outside.needed:
        return
    import ray

    hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if lines := [f"node {hosts[node]}: {problem}" for node, problem in problems_on(hosts, outside).items() if problem]:
        raise SweepError("\n".join(lines))


def recorded(spec: SweepSpec, metric: str) -> dict[str, str]:
    """Record all plugins of other packages that a sweep uses, for its ledger and manifest."""
    return origins([*_of_trials(spec, metric), f"searcher {spec.searcher.name}", f"pruner {spec.pruner.name}"])


def _of_trials(spec: SweepSpec, metric: str | None) -> list[str]:
    methods = [f"method {name}" for name in spec.algorithms]
    criteria = (f"exit criterion {METHODS[name].exits}" for name in spec.algorithms)
    return [*methods, *criteria, *([f"metric {metric}"] if metric else [])]


def _plugin(key: str) -> OutsidePlugin:
    kind, _, name = key.rpartition(" ")
    origin = origin_of(key)
    assert origin is not None
    value = None
    if origin.module == "__main__" and not origin.distribution:
        from ray import cloudpickle

        value = cloudpickle.dumps(registry_of(kind)[name])
    return OutsidePlugin(key, origin, value)


def _make_available(plugin: OutsidePlugin) -> None:
    """Import or unpickle a plugin that this process lacks. Raises SweepError, without the node's name."""
    kind, _, name = plugin.key.rpartition(" ")
    registry, origin = registry_of(kind), plugin.origin
    if name not in registry and plugin.value is not None:
        registry.register(pickle.loads(plugin.value), module=origin.module)
    elif name not in registry:
        _import(plugin)
    if name not in registry:
        cure = (
            "install it there" if origin.distribution else f"let module {origin.module} register it when it is imported"
        )
        raise SweepError(f"{plugin} is missing; {cure}")
    local = registry.origin(name)
    if local is None or plugin.value is not None or same_origin(str(local), str(origin)):
        return
    if origin.distribution:
        raise SweepError(
            f"{plugin.key} is of {local.distribution or local.module}, the driver's of {origin.distribution}; "
            "install the same version on all nodes"
        )
    raise SweepError(f"{plugin.key} is of {local}, the driver's of {origin}; copy the driver's module to all nodes")


def _import(plugin: OutsidePlugin) -> None:
    """Import the module of a plugin, which may register it. Raises SweepError if no entry point could declare it."""
    try:
        importlib.import_module(plugin.origin.module)
    except Exception as error:
        if not plugin.origin.distribution:
            raise SweepError(
                f"{plugin}: its module can't be imported ({type(error).__name__}: {error}); "
                f"install it there, or name a module that can be in {VARIABLE}"
            ) from None
