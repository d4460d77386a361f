"""Where trials find room: what nodes have, what an autoscaler can add, and how many trials share a GPU."""

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
from tune.machines.nodes import Question, ask, run_on
from tune.space import SweepSpec

log = logging.getLogger(__name__)

#: The custom resource that Ray gives a cluster's head.
_HEAD = "node:__internal_head__"


@dataclasses.dataclass(frozen=True)
class NodeType:
    """A kind of node that an autoscaler starts, and how many of it at most."""

    name: str
    resources: Mapping[str, float]
    most: int


@dataclasses.dataclass(frozen=True)
class Autoscaler:
    """What starts nodes by itself: of these kinds, and at most so many together."""

    kinds: tuple[NodeType, ...]
    most: int

    def room(self, cpus: float, gpus: float) -> int:
        """How many trials the nodes hold that it may start."""
        room, left = 0, self.most
        for each, most in sorted(((holds(k.resources, cpus, gpus), k.most) for k in self.kinds), reverse=True):
            room, left = room + each * min(left, most), left - min(left, most)
        return room


class MemoryEstimate(Protocol):
    """How many bytes a trial takes on its device."""

    @property
    def total(self) -> int: ...


def check_resources(cpus: float, gpus: float) -> None:
    """DeviceError for a request that no node can meet, neither one that is up nor one to come: Ray would wait for ever.

    Ray must be up.
    """
    if _room(cpus, gpus):
        return
    scaler = autoscaler()
    if scaler and scaler.room(cpus, gpus):
        return
    have = "; ".join(_amount(node) for node in _up()) or "none"
    if scaler:
        have += "; to come: " + "; ".join(f"{kind.name} {_amount(kind.resources)}" for kind in scaler.kinds)
    raise DeviceError(
        f"a trial asks for {cpus:g} CPUs and {gpus:g} GPUs, which no node has (nodes: {have}); "
        "change resources in the space, or --set resources.gpus=0"
    )


def holds(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many trials a node with these resources holds at once. A share of a GPU never spans two of them."""
    fits = [math.floor(resources.get("CPU", 0) / cpus + 1e-9)]
    if gpus:
        there = resources.get("GPU", 0)
        fits.append(math.floor(there / gpus + 1e-9) if gpus >= 1 else int(there) * sharers(gpus))
    return min(fits)


def sharers(gpus: float) -> int:
    """How many trials Ray puts on one GPU where each asks for `gpus` of it."""
    return max(1, math.floor(1 / gpus + 1e-9))


def capacity(cpus: float, gpus: float) -> int:
    """How many trials run at once on the nodes that are up, or on all that an autoscaler may start. Ray must be up."""
    scaler = autoscaler()
    return max(_room(cpus, gpus), scaler.room(cpus, gpus) if scaler else 0)


def autoscaler() -> Autoscaler | None:
    """What this cluster's autoscaler may start; None where none runs, or none whose configuration can be read.

    Ray keeps this configuration nowhere but in a file on the head, which its monitor process there is given on its
    command line: so a task on the head reads it. Ray must be up.
    """
    import ray

    heads = [n["NodeID"] for n in ray.nodes() if n["Alive"] and _HEAD in n["Resources"]]
    answers = run_on(heads, _autoscaling_config, ray.get_runtime_context().gcs_address, timeout=30)
    config = next(iter(answers.values()), None)
    if not isinstance(config, dict):
        return None
    most = int(config.get("max_workers", 0))
    head = config.get("head_node_type")
    kinds = [
        # Of the head's own type no second node is started, unless it says how many.
        NodeType(name, kind.get("resources") or {}, int(kind.get("max_workers", 0 if name == head else most)))
        for name, kind in config.get("available_node_types", {}).items()
    ]
    return Autoscaler(tuple(kind for kind in kinds if kind.most), most)


def _autoscaling_config(node_id: str, gcs_address: str) -> dict[str, Any] | None:
    """On the head: the configuration that the autoscaler of the cluster at this address was started with."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # ended by now
        options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
        if options.get("--gcs-address") == gcs_address and "--autoscaling-config" in options:
            config: dict[str, Any] = load_yaml(Path(options["--autoscaling-config"]).expanduser())
            return config
    return None


@contextlib.contextmanager
def nodes_for(trials: int | None, cpus: float, gpus: float) -> Iterator[Callable[[], None]]:
    """Ask an autoscaler for the nodes of so many trials at once (None: as many as it may start).

    Yields a function to call now and then: it withdraws the request once there is room for all, so that nodes that
    have nothing more to do may go. It is withdrawn at the latest at the end. Does nothing without an autoscaler.

    Ray keeps a request until the next one, also when the driver is killed: the next session's ends it.
    """
    from ray.autoscaler import sdk

    scaler = autoscaler()
    room = scaler.room(cpus, gpus) if scaler else 0
    wanted = room if trials is None else min(trials, room)
    asked = wanted > 0

    def settle() -> None:
        nonlocal asked
        with contextlib.suppress(Exception):  # it only saves machines, and must not end a sweep: next time, then
            if asked and _room(cpus, gpus) >= wanted:
                sdk.request_resources(bundles=[])
                asked = False

    if asked:
        sdk.request_resources(bundles=[{"CPU": cpus, **({"GPU": gpus} if gpus else {})}] * wanted)
    try:
        yield settle
    finally:
        if asked:
            with contextlib.suppress(Exception):  # a cluster that is gone has no requests, and must not hide why
                sdk.request_resources(bundles=[])


def trials_per_gpu(estimate: MemoryEstimate, gpu_bytes: int) -> tuple[int, float]:
    """How many trials of this size fit on a GPU, and the `resources.gpus` that lets just so many share it.

    (0, 1.0) where not even one fits.
    """
    fit = gpu_bytes // max(1, estimate.total)
    # Ray counts in ten thousandths; rounded down, so that the last trial finds room.
    return int(fit), math.floor(10_000 / max(1, fit)) / 10_000


def crowding(estimate: MemoryEstimate, gpu_bytes: int, gpus: float) -> str:
    """What is wrong with `resources.gpus` for trials of this size on a GPU; empty where they fit."""
    fit, share = trials_per_gpu(estimate, gpu_bytes)
    each = f"about {estimate.total / 1e9:.1f} GB each, a GPU has {gpu_bytes / 1e9:.1f} GB"
    if not gpus or sharers(gpus) <= fit:
        return ""
    if not fit:
        return f"not one trial fits on a GPU ({each}); lower batch_size or max_length"
    return (
        f"resources.gpus {gpus:g} puts {sharers(gpus)} trials on a GPU that holds {fit} ({each}); set it to {share:g}"
    )


def warn_of_crowding(spec: SweepSpec) -> None:
    """Warn where trials that share a GPU would not fit on the smallest one that is up. Ray must be up."""
    if 0 < spec.resources.gpus < 1:
        sizes = [size for node in ask(Question(gpus=True)) for _, size in node.gpus]
        problem = crowding(estimate_for_space(spec, "cuda")[1], min(sizes), spec.resources.gpus) if sizes else ""
        if problem:
            log.warning(f"warning: {problem}; trials that run out of memory are tried again alone")


def _up() -> list[Mapping[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _room(cpus: float, gpus: float) -> int:
    return sum(holds(node, cpus, gpus) for node in _up())


def _amount(resources: Mapping[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"
