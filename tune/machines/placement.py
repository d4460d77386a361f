"""Capacity for trials: on existing nodes, on nodes that an autoscaler can start, and on shared GPUs."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from leebert.errors import DeviceError
from leebert.yaml import load_yaml
from tune.machines.footprint import estimate_for_space
from tune.machines.nodes import Query, query_nodes, run_on
from tune.space import SweepSpec

log = logging.getLogger(__name__)

#: The custom resource of a Ray cluster's head.
_HEAD = "node:__internal_head__"


@dataclasses.dataclass(frozen=True)
class NodeType:
    """A type of node that an autoscaler can start.

    Attributes:
        name: Its name in the autoscaler's configuration.
        resources: `CPU` and `GPU` of a node.
        most: Largest number of nodes.
    """

    name: str
    resources: Mapping[str, float]
    most: int


@dataclasses.dataclass(frozen=True)
class Autoscaler:
    """A cluster's autoscaler.

    Attributes:
        kinds: The types of nodes that it starts.
        most: Largest number of nodes in total.
    """

    kinds: tuple[NodeType, ...]
    most: int

    def room(self, cpus: float, gpus: float) -> int:
        """Count the trials that fit on the nodes that it can start."""
        room, remaining = 0, self.most
        for each, most in sorted(((trials_on(k.resources, cpus, gpus), k.most) for k in self.kinds), reverse=True):
            room, remaining = room + each * min(remaining, most), remaining - min(remaining, most)
        return room


class MemoryEstimate(Protocol):
    """An estimate of the bytes that a trial needs on its device."""

    @property
    def total(self) -> int: ...


def check_resources(cpus: float, gpus: float) -> None:
    """Refuse trials that no node, existing or startable, can run; Ray would wait forever. Ray must be initialised.

    Args:
        cpus: CPUs of a trial.
        gpus: GPUs of a trial; a fraction is a share of one GPU.

    Raises:
        DeviceError: No node has these resources.
    """
    if _room(cpus, gpus):
        return
    scaler = autoscaler()
    if scaler and scaler.room(cpus, gpus):
        return
    available = "; ".join(_amount(node) for node in _up()) or "none"
    if scaler:
        available += "; startable: " + "; ".join(f"{kind.name} {_amount(kind.resources)}" for kind in scaler.kinds)
    raise DeviceError(
        f"a trial needs {cpus:g} CPUs and {gpus:g} GPUs, which no node has (nodes: {available}); "
        "change resources in the space, or --set resources.gpus=0"
    )


def trials_on(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Count the trials that fit on a node. A share of a GPU is always on one GPU.

    Args:
        resources: The node's `CPU` and `GPU`.
        cpus: CPUs of a trial.
        gpus: GPUs of a trial; a fraction is a share of one GPU.

    Returns:
        Number of trials.
    """
    fits = [math.floor(resources.get("CPU", 0) / cpus + 1e-9)]
    if gpus:
        available = resources.get("GPU", 0)
        fits.append(math.floor(available / gpus + 1e-9) if gpus >= 1 else int(available) * sharers(gpus))
    return min(fits)


def sharers(gpus: float) -> int:
    """Count the trials that Ray puts on one GPU if each requests a share `gpus` of it."""
    return max(1, math.floor(1 / gpus + 1e-9))


def capacity(cpus: float, gpus: float) -> int:
    """Count the trials that can run at once, including on nodes that an autoscaler can start. Ray must be initialised."""
    scaler = autoscaler()
    return max(_room(cpus, gpus), scaler.room(cpus, gpus) if scaler else 0)


def autoscaler() -> Autoscaler | None:
    """Read the configuration of this cluster's autoscaler. Ray must be initialised.

    Ray stores the configuration only in a file on the head, named on the command line of the monitor process, so a task on the
    head reads it.

    Returns:
        The autoscaler; None if none runs, or its configuration can't be read.
    """
    import ray

    heads = [n["NodeID"] for n in ray.nodes() if n["Alive"] and _HEAD in n["Resources"]]
    results = run_on(heads, _autoscaling_config, ray.get_runtime_context().gcs_address, timeout=30)
    config = next(iter(results.values()), None)
    if not isinstance(config, dict):
        return None
    most = int(config.get("max_workers", 0))
    head = config.get("head_node_type")
    kinds = [
        # No second node of the head's type starts, unless the type sets max_workers.
        NodeType(name, kind.get("resources") or {}, int(kind.get("max_workers", 0 if name == head else most)))
        for name, kind in config.get("available_node_types", {}).items()
    ]
    return Autoscaler(tuple(kind for kind in kinds if kind.most), most)


def _autoscaling_config(node_id: str, gcs_address: str) -> dict[str, Any] | None:
    """Read, on the head, the configuration of the autoscaler of the cluster at this address."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # the process has ended
        options = dict(word.split("=", 1) for word in arguments if word.startswith("--") and "=" in word)
        if options.get("--gcs-address") == gcs_address and "--autoscaling-config" in options:
            config: dict[str, Any] = load_yaml(Path(options["--autoscaling-config"]).expanduser())
            return config
    return None


@contextlib.contextmanager
def nodes_for(trials: int | None, cpus: float, gpus: float) -> Iterator[Callable[[], None]]:
    """Request nodes for a number of concurrent trials from the autoscaler; without one, do nothing.

    Ray keeps a request until the next one, even if the driver is killed; then the next session's request replaces it.

    Args:
        trials: Number of trials; None: as many as the autoscaler can start.
        cpus: CPUs per trial.
        gpus: GPUs per trial.

    Yields:
        A function to call regularly. It withdraws the request once all trials fit, so that idle nodes can stop. At the end
        of the context the request is withdrawn in any case.
    """
    from ray.autoscaler import sdk

    scaler = autoscaler()
    room = scaler.room(cpus, gpus) if scaler else 0
    target = room if trials is None else min(trials, room)
    requested = target > 0

    def withdraw_if_met() -> None:
        nonlocal requested
        with contextlib.suppress(Exception):  # it only saves machines and must not end a sweep; the next call retries
            if requested and _room(cpus, gpus) >= target:
                sdk.request_resources(bundles=[])
                requested = False

    if requested:
        sdk.request_resources(bundles=[{"CPU": cpus, **({"GPU": gpus} if gpus else {})}] * target)
    try:
        yield withdraw_if_met
    finally:
        if requested:
            with contextlib.suppress(Exception):  # a lost cluster has no requests, and must not hide the original error
                sdk.request_resources(bundles=[])


def trials_per_gpu(estimate: MemoryEstimate, gpu_bytes: int) -> tuple[int, float]:
    """Count the trials that fit on a GPU.

    Args:
        estimate: Memory of a trial.
        gpu_bytes: Memory of the GPU, in bytes.

    Returns:
        Their number, and the `resources.gpus` for that number; (0, 1.0) if not even one fits.
    """
    fit = gpu_bytes // max(1, estimate.total)
    # Ray counts in ten-thousandths; rounding down makes the last trial fit.
    return int(fit), math.floor(10_000 / max(1, fit)) / 10_000


def crowding(estimate: MemoryEstimate, gpu_bytes: int, gpus: float) -> str:
    """Describe what is wrong with `resources.gpus`.

    Args:
        estimate: Memory of a trial.
        gpu_bytes: Memory of a GPU, in bytes.
        gpus: `resources.gpus`.

    Returns:
        One sentence; empty if the trials that share a GPU fit on it.
    """
    fit, share = trials_per_gpu(estimate, gpu_bytes)
    each = f"about {estimate.total / 1e9:.1f} GB each, a GPU has {gpu_bytes / 1e9:.1f} GB"
    if not gpus or sharers(gpus) <= fit:
        return ""
    if not fit:
        return f"no trial fits on a GPU ({each}); lower batch_size or max_length"
    return (
        f"resources.gpus {gpus:g} puts {sharers(gpus)} trials on a GPU that holds {fit} ({each}); set it to {share:g}"
    )


def warn_of_crowding(spec: SweepSpec) -> None:
    """Warn if trials that share a GPU would not fit on the smallest one. Ray must be initialised."""
    if 0 < spec.resources.gpus < 1:
        sizes = [size for node in query_nodes(Query(gpus=True)) for _, size in node.gpus]
        problem = crowding(estimate_for_space(spec, "cuda")[1], min(sizes), spec.resources.gpus) if sizes else ""
        if problem:
            log.warning(f"warning: {problem}; trials that run out of memory are retried alone")


def _up() -> list[Mapping[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _room(cpus: float, gpus: float) -> int:
    return sum(trials_on(node, cpus, gpus) for node in _up())


def _amount(resources: Mapping[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"
