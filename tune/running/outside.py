"""Parts of other packages in the processes of trials: which a sweep uses, and how each process gets them.

A part of an installed package is found there by its entry point. One that was registered is found by importing the module
that it comes from. One of `__main__` (a script or a notebook) travels by value.
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
from leebert.plugins import REGISTRIES, VARIABLE, Origin, load_modules
from tune.machines.nodes import SECONDS, run_on, sentence
from tune.space import SweepSpec


@dataclasses.dataclass(frozen=True)
class OutsidePart:
    """A part that trials use.

    Attributes:
        key: Kind and name, such as ``method often``.
        origin: The driver's origin of it.
        value: The pickled part, where its module exists in the driver's process only.
    """

    key: str
    origin: Origin
    value: bytes | None = None

    def __str__(self) -> str:
        return f"{self.key} of {self.origin.distribution or self.origin.module}"


@dataclasses.dataclass(frozen=True)
class OutsideParts:
    """What a trial's process needs before it reads a configuration: modules to import, and parts."""

    modules: str = ""
    parts: tuple[OutsidePart, ...] = ()

    @classmethod
    def of(cls, spec: SweepSpec, metric: str | None) -> OutsideParts:
        """Collect what the trials of a space use, without a metric that is not known; searcher and pruner stay with the driver."""
        found = tuple(_part(key) for key in origins(_of_trials(spec, metric)))
        return cls(os.environ.get(VARIABLE, ""), found)

    @property
    def needed(self) -> bool:
        """Whether a process needs anything before it reads a configuration."""
        return bool(self.modules or self.parts)

    def __str__(self) -> str:
        return ", ".join(f"{part.key} of {part.origin}" for part in self.parts) or self.modules

    @property
    def packages(self) -> tuple[str, ...]:
        """The installed packages that the parts come from."""
        owners = (part.origin.distribution for part in self.parts)
        return tuple(dict.fromkeys(owner.split(" ")[0] for owner in owners if owner))

    def make_available(self) -> None:
        """Let the registries of this process have the parts.

        Raises:
            SweepError: One is missing here, or of another version; the line names part, package, version and node.
        """
        if problem := self.problem():
            raise SweepError(f"node {socket.gethostname()}: {problem}")

    def problem(self) -> str:
        """Let the registries of this process have the parts; say in one sentence which one they can't have, if any."""
        if self.modules:
            os.environ.setdefault(VARIABLE, self.modules)
        try:
            load_modules()
            for part in self.parts:
                _make_available(part)
        except LeebertError as error:
            return str(error)
        return ""


def problems_on(node_ids: Iterable[str], outside: OutsideParts, timeout: float = SECONDS) -> dict[str, str]:
    """Ask nodes whether they have the parts; Ray must be up.

    Args:
        node_ids: Ray's ids of the nodes.
        outside: The parts.
        timeout: Seconds to wait for the nodes.

    Returns:
        By node, one sentence about the first part that it can't have; empty if it has all.
    """
    # Pickled here: within `run_on` this module travels by value, and with it copies of the registries.
    answers = run_on(node_ids, _problem, pickle.dumps(outside), timeout=timeout)
    return {node: sentence(answer) if isinstance(answer, Exception) else answer for node, answer in answers.items()}


def _problem(node_id: str, outside: bytes) -> str:
    parts: OutsideParts = pickle.loads(outside)
    return parts.problem()


def check_plugins(address: str | None, outside: OutsideParts) -> None:
    """Raise SweepError if a node of a cluster lacks a part that trials use; this machine alone is not asked."""
    if address is None or not outside.needed:
        return
    import ray

    hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if lines := [f"node {hosts[node]}: {problem}" for node, problem in problems_on(hosts, outside).items() if problem]:
        raise SweepError("\n".join(lines))


def recorded(spec: SweepSpec, metric: str) -> dict[str, str]:
    """Record all parts of other packages that a sweep uses, for its ledger and manifest."""
    return origins([*_of_trials(spec, metric), f"searcher {spec.searcher.name}", f"pruner {spec.pruner.name}"])


def _of_trials(spec: SweepSpec, metric: str | None) -> list[str]:
    methods = [f"method {name}" for name in spec.algorithms]
    criteria = [f"exit criterion {METHODS[name].exits}" for name in spec.algorithms]
    return [*methods, *criteria, *([f"metric {metric}"] if metric else [])]


def _part(key: str) -> OutsidePart:
    kind, _, name = key.rpartition(" ")
    origin = origin_of(key)
    assert origin is not None
    value = None
    if origin.module == "__main__" and not origin.distribution:
        from ray import cloudpickle

        value = cloudpickle.dumps(REGISTRIES[kind][name])
    return OutsidePart(key, origin, value)


def _make_available(part: OutsidePart) -> None:
    """Import or unpickle a part that this process lacks. Raises SweepError without the node."""
    kind, _, name = part.key.rpartition(" ")
    registry, origin = REGISTRIES[kind], part.origin
    if name not in registry and part.value is not None:
        registry.register(name, pickle.loads(part.value), module=origin.module)
    elif name not in registry:
        _import(part)
    if name not in registry:
        cure = (
            "install it there" if origin.distribution else f"let module {origin.module} register it when it is imported"
        )
        raise SweepError(f"{part} is missing; {cure}")
    here = registry.origin(name)
    if here is None or part.value is not None or same_origin(str(here), str(origin)):
        return
    if origin.distribution:
        raise SweepError(
            f"{part.key} is of {here.distribution or here.module}, the driver's of {origin.distribution}; "
            "install the same version on all nodes"
        )
    raise SweepError(f"{part.key} is of {here}, the driver's of {origin}; copy the driver's module to all nodes")


def _import(part: OutsidePart) -> None:
    """Import the module of a part, which may register it. Raises SweepError if only that module could bring it."""
    try:
        importlib.import_module(part.origin.module)
    except Exception as error:
        if not part.origin.distribution:
            raise SweepError(
                f"{part}: its module can't be imported ({type(error).__name__}: {error}); "
                f"install it there, or name a module that can be in {VARIABLE}"
            ) from None
