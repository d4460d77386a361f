"""`leebert-tune doctor`: check within a minute for problems that would end a sweep after hours. Checks leave no files."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from leebert import live
from leebert.console import table
from leebert.errors import BackboneError, LeebertError, SweepError
from leebert.images.backbones import is_network
from leebert.omega import MOVED
from leebert.provenance import backbone_differences, backbone_identity
from tune.analysis.labels import searched_name
from tune.analysis.progress import searched
from tune.machines import nodes, placement
from tune.machines.footprint import estimate_for_space
from tune.machines.nodes import NodeFacts, Query, Stamp
from tune.machines.placement import MemoryEstimate
from tune.running.omega_reach import steps_by_optimizer, still_rates
from tune.running.outside import OutsidePlugins, problems_on
from tune.running.prepare import Prepared, prepare
from tune.running.session import start_ray
from tune.space import SweepSpec
from tune.space.spec import anchored, data_config
from tune.store.folder import storage_root
from tune.tracking.server import advice, is_server, open_store, redact, resolve_uri

Status = Literal["ok", "warning", "failed", "skipped"]

DRIVER = "driver"
CLUSTER = "cluster"

HUB_SECONDS = 5.0
MLFLOW_SECONDS = 5.0

#: Bytes of a checkpoint: the weight and Adam's two moments, float32.
BYTES_PER_PARAMETER = 12


@dataclasses.dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: What was checked.
        where: The driver, the cluster, or a node's name.
        status: ok, warning, failed or skipped.
        detail: The measurement; for a failed check also what to do; for a skipped one the reason.
    """

    name: str
    where: str
    status: Status
    detail: str


@dataclasses.dataclass(frozen=True)
class DriverFacts:
    """The driver's facts, to which nodes are compared; None for facts that the driver could not read.

    Attributes:
        stamp: The driver's versions.
        mark: The driver's folder in the storage (:func:`tune.machines.nodes.marked`), with the tokens of `prepared`.
        prepared: The prepared data.
        backbone: The identity of the backbone's files.
    """

    stamp: Stamp
    mark: Path | None
    prepared: Prepared | None
    backbone: dict[str, Any] | None


def examine(spec: SweepSpec, address: str | None = None) -> list[Check]:
    """Run all checks of a sweep, in the order of the table; a failed check does not stop the others.

    Args:
        spec: The search space.
        address: The Ray cluster; None for this machine.

    Returns:
        The results.
    """
    spec = anchored(spec)
    storage = storage_root(spec.storage)
    live.phase("starting Ray" if address is None else f"connecting to Ray at {address}")
    ray_check = _ray(address)
    live.phase("loading the backbone")
    backbone_check = _backbone(spec)
    with _workplace(storage) as (folder, storage_check):
        live.phase("reading and preparing the training split")
        data_check, prepared = _data(spec, folder)
        checks = [ray_check, storage_check, backbone_check, data_check]
        node_facts: list[NodeFacts] = []
        if ray_check.status == "ok":
            driver = DriverFacts(
                stamp=Stamp.local(),
                mark=folder if storage_check.status == "ok" else None,
                prepared=prepared,
                backbone=backbone_identity(spec.backbone) if backbone_check.status == "ok" else None,
            )
            live.phase("asking the nodes for their versions, storage and data")
            node_facts = nodes.query_nodes(_query(spec, driver))
            for node in node_facts:
                checks += node_checks(node, driver)
            checks += plugin_checks(OutsidePlugins.of(spec, prepared.facts["metric"] if prepared else None), node_facts)
    live.phase("checking memory, disk, MLflow and the hub")
    resources = _resources(spec, node_facts)
    trials = _concurrent(spec) if resources.status == "ok" else 1
    checks += [
        resources,
        gpu_memory(spec, node_facts),
        omega(spec, prepared.facts if prepared else None),
        _disk(storage, prepared, trials),
        _mlflow(spec),
        _hub(spec, prepared),
    ]
    return checks


def verdict(checks: Sequence[Check]) -> None:
    """Raise SweepError if a check failed."""
    failed = [f"{check.name} ({check.where})" for check in checks if check.status == "failed"]
    if failed:
        raise SweepError(f"{len(failed)} check(s) failed, so the sweep would fail too: {', '.join(failed)}")


def print_checks(checks: Sequence[Check]) -> None:
    """Print the results as a table on stdout."""
    from rich.console import Console
    from rich.markup import escape

    colours = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}
    rows = [
        (check.name, f"[{colours[check.status]}]{check.status}[/]", escape(f"{check.where}: {check.detail}"))
        for check in checks
    ]
    Console().print(table(("check", "status", "where and what"), rows, left=3, whole=2, framed=False))


# Checks of the driver's machine.


def _ray(address: str | None) -> Check:
    try:
        start_ray(address)
    except SweepError as error:
        return Check("ray", DRIVER, "failed", str(error))
    import ray

    alive = sum(node["Alive"] for node in ray.nodes())
    return Check("ray", DRIVER, "ok", f"{alive} node(s) at {address}" if address else "this machine only")


def _backbone(spec: SweepSpec) -> Check:
    """Check that weights and tokenizer can be read and fit each other."""
    from leebert.data.tasks import any_task
    from leebert.kinds import kind_of

    try:
        task = any_task(spec.task)
        kind_of(task).check_backbone(task, spec.model)
    except LeebertError as error:
        return Check("backbone", DRIVER, "failed", str(error))
    return Check("backbone", DRIVER, "ok", spec.backbone)


@contextlib.contextmanager
def _workplace(storage: Path) -> Iterator[tuple[Path, Check]]:
    """Create a temporary folder in the storage, marked by the driver, or elsewhere if the storage can't be written."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(nodes.marked(storage))
            check = Check("storage", DRIVER, "ok", str(storage))
        except OSError as error:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            detail = f"{storage} can't be written ({error.strerror}); change its permissions, or give another --storage"
            check = Check("storage", DRIVER, "failed", detail)
        yield folder, check


def _data(spec: SweepSpec, cache: Path) -> tuple[Check, Prepared | None]:
    """Read, fold and tokenise the training split as the sweep will."""
    try:
        prepared = prepare(spec, cache)
    except BackboneError:
        return Check("data", DRIVER, "skipped", "tokenising needs the backbone, which failed"), None
    except LeebertError as error:
        return Check("data", DRIVER, "failed", str(error)), None
    facts = prepared.facts
    cut = f", {facts['truncated_rows']} truncated at {spec.max_length} tokens" if facts["truncated_rows"] else ""
    return Check("data", DRIVER, "ok", f"{facts['rows']} samples{cut}"), prepared


def _query(spec: SweepSpec, driver: DriverFacts) -> Query:
    """Make the query of each node."""
    return Query(
        storage=str(driver.mark.parent) if driver.mark else None,
        mark=driver.mark.name if driver.mark else None,
        tokens=driver.prepared.facts["tokens"] if driver.mark and driver.prepared else None,
        backbone=spec.backbone if driver.backbone else None,
        gpus=spec.resources.gpus > 0,
    )


# Checks of each node.


def node_checks(node: NodeFacts, driver: DriverFacts) -> list[Check]:
    """Compare a node with the driver: versions, storage, data and backbone.

    Args:
        node: What the node reported.
        driver: What it is compared with.

    Returns:
        The results; a check whose requirement failed on the node is left out.
    """
    if node.error:
        return [Check("versions", node.name, "failed", node.error)]
    checks = [_versions(node, driver.stamp), _node_storage(node, driver.mark)]
    if node.package_error:
        return checks
    return [*checks, _node_data(node, driver), _node_backbone(node, driver.backbone)]


def _versions(node: NodeFacts, stamp: Stamp) -> Check:
    if node.package_error:
        detail = f"leebert can't be imported on this node: {node.package_error}; install the driver's version"
        return Check("versions", node.name, "failed", detail)
    if mismatches := stamp.differences(node.versions, node.code):
        listing = ", ".join(f"{library} {on_node} (driver: {on_driver})" for library, on_node, on_driver in mismatches)
        return Check("versions", node.name, "failed", f"{listing}; install the driver's versions")
    others = [name for name in node.versions if node.versions[name] != stamp.versions.get(name)]
    if others:
        listing = ", ".join(f"{n} {node.versions[n]} (driver: {stamp.versions.get(n, 'none')})" for n in others)
        return Check("versions", node.name, "warning", listing)
    return Check("versions", node.name, "ok", f"Python {node.versions['python']}, leebert {node.code}")


def _node_storage(node: NodeFacts, mark: Path | None) -> Check:
    if mark is None:
        return Check("storage", node.name, "skipped", "the driver can't write to it")
    if problem := node.storage_error or nodes.unseen(mark, node):
        return Check("storage", node.name, "failed", problem)
    return Check("storage", node.name, "ok", "same as the driver's, writable")


def _node_data(node: NodeFacts, driver: DriverFacts) -> Check:
    if not (driver.mark and driver.prepared):
        return Check("data", node.name, "skipped", "the driver could not write tokens to the storage")
    if node.tokens_error:
        return Check("data", node.name, "failed", f"{node.tokens_error}; trials read this file from the storage")
    if node.tokens != driver.prepared.problem.rows().fingerprint:
        return Check(
            "data", node.name, "failed", "its tokens differ from the driver's; mount the same storage on all nodes"
        )
    return Check("data", node.name, "ok", "same as the driver's")


def _node_backbone(node: NodeFacts, expected: dict[str, Any] | None) -> Check:
    if expected is None:
        return Check("backbone", node.name, "skipped", "the driver could not read the backbone")
    if node.backbone_error:
        return Check("backbone", node.name, "failed", node.backbone_error)
    if lines := backbone_differences(expected, node.backbone):
        parts = ", ".join(line.partition(" ")[0] for line in lines)
        return Check("backbone", node.name, "failed", f"its {parts} differ from the driver's; copy the driver's files")
    return Check("backbone", node.name, "ok", "same as the driver's")


def plugin_checks(
    outside: OutsidePlugins, node_facts: Sequence[NodeFacts], timeout: float = nodes.SECONDS
) -> list[Check]:
    """Check that each node has the plugins that trials use, in the driver's version.

    Args:
        outside: The plugins.
        node_facts: What the nodes reported.
        timeout: Seconds to wait for the nodes.

    Returns:
        A check of each node that can import the package; none if trials use only built-in plugins.
    """
    if not outside.needed:
        return []
    asked = {node.node_id: node.name for node in node_facts if not (node.error or node.package_error)}
    return [
        Check("plugins", asked[node_id], "failed" if problem else "ok", problem or f"the driver's: {outside}")
        for node_id, problem in problems_on(asked, outside, timeout).items()
    ]


# Checks of the cluster as a whole.


def _resources(spec: SweepSpec, node_facts: Sequence[NodeFacts]) -> Check:
    if not node_facts:
        return Check("resources", CLUSTER, "skipped", "no node responds")
    try:
        placement.check_resources(spec.resources.cpus, spec.resources.gpus)
    except LeebertError as error:
        return Check("resources", CLUSTER, "failed", str(error))
    return Check("resources", CLUSTER, "ok", f"{_concurrent(spec)} trial(s) at once")


def _concurrent(spec: SweepSpec) -> int:
    room = placement.capacity(spec.resources.cpus, spec.resources.gpus)
    return min(n for n in (room, spec.resources.concurrent, spec.planned) if n is not None)


def gpu_memory(
    spec: SweepSpec,
    node_facts: Sequence[NodeFacts],
    estimate: Callable[[SweepSpec, str], tuple[dict[str, Any], MemoryEstimate]] = estimate_for_space,
) -> Check:
    """Check that the largest configuration fits on the smallest GPU.

    Args:
        spec: The search space.
        node_facts: What the nodes reported.
        estimate: Returns the space's largest configuration and the memory of its training step, in bytes.

    Returns:
        The result.
    """
    gpus = [(size, f"{name} of {node.name}") for node in node_facts for name, size in node.gpus]
    if not spec.resources.gpus:
        return Check("gpu memory", CLUSTER, "skipped", "trials request no GPU")
    try:
        values, memory = estimate(spec, "cuda")
    except LeebertError as error:
        return Check("gpu memory", CLUSTER, "skipped", f"the memory of a trial is unknown: {error}")
    largest = f"{searched_name(values, searched(spec))}: about {memory.total / 1e9:.1f} GB"
    if not gpus:
        return Check("gpu memory", CLUSTER, "skipped", f"{largest}; no running node has a GPU that torch detects")
    size, smallest = min(gpus)
    fit, _ = placement.trials_per_gpu(memory, size)
    if problem := placement.crowding(memory, size, spec.resources.gpus):
        return Check("gpu memory", CLUSTER, "warning" if fit else "failed", f"{smallest}: {problem}")
    return Check("gpu memory", CLUSTER, "ok", f"{largest}; {smallest} holds {fit}")


def omega(spec: SweepSpec, facts: Mapping[str, Any] | None) -> Check:
    """Check that each λ2 of the space can move the loss weights within a cell's updates.

    Args:
        spec: The search space.
        facts: The manifest's facts of the data (`rows`, `label_names`); None if they could not be read.

    Returns:
        The result.
    """
    if not any(map(steps_by_optimizer, spec.algorithms)):
        return Check("omega", DRIVER, "skipped", "no method of this sweep learns its loss weights by Adam or SGD")
    if facts is None:
        return Check("omega", DRIVER, "skipped", "without data the number of updates is unknown")
    if still := still_rates(spec, facts["rows"], len(facts["label_names"])):
        return Check("omega", DRIVER, "warning", "; ".join(rate.in_words() for rate in still))
    return Check("omega", DRIVER, "ok", f"every λ2 can move the loss weights by {MOVED:g} or more")


def _disk(storage: Path, prepared: Prepared | None, trials: int) -> Check:
    """Check that the disk holds two checkpoints per concurrent trial: the last one stays until the next is complete."""
    if prepared is None:
        return Check("disk", DRIVER, "skipped", "without data and backbone the size of a checkpoint is unknown")
    parameters = sum(p.numel() for p in prepared.problem.model(prepared.spec.train_config({})).parameters())
    needed = 2 * trials * BYTES_PER_PARAMETER * parameters
    existing = next(folder for folder in (storage, *storage.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    detail = f"{free / 1e9:.1f} GB free in {existing}, {needed / 1e9:.1f} GB for the checkpoints of {trials} trial(s)"
    if free < needed:
        todo = "; free disk space, give another --storage, or lower resources.concurrent"
        return Check("disk", DRIVER, "failed", detail + todo)
    return Check("disk", DRIVER, "ok", detail)


def _mlflow(spec: SweepSpec) -> Check:
    """Send one request that changes nothing."""
    uri = resolve_uri(spec.tracking.uri)
    if not is_server(uri):
        return Check("mlflow", DRIVER, "skipped", f"{redact(uri)} is a file, not a server")
    try:
        open_store(uri, MLFLOW_SECONDS, MLFLOW_SECONDS).search_experiments(max_results=1)
    except Exception as error:  # errors of MLflow, requests and the network have no common class
        return Check("mlflow", DRIVER, "failed", advice(uri, error))
    return Check("mlflow", DRIVER, "ok", redact(uri))


def _hub(spec: SweepSpec, prepared: Prepared | None) -> Check:
    """Check that the hub has the sweep's data set and backbone; if the hub is unreachable, the cache must have them."""
    from huggingface_hub import HfApi

    api, needed = HfApi(), _from_hub(spec)
    if not needed:
        return Check("hub", DRIVER, "skipped", "this sweep takes nothing from the hub")
    names = ", ".join(name for _, name, _ in needed)
    try:
        for kind, name, revision in needed:
            api.repo_info(name, repo_type=kind, revision=revision, timeout=HUB_SECONDS)
    except Exception as error:  # errors of the hub, its HTTP client and the network have no common class
        if prepared is not None:
            return Check("hub", DRIVER, "ok", f"not reached, but {names} is in the cache")
        reason = str(error).strip().splitlines()[0]
        todo = "check id, access rights and connection, or give --data-dir and a folder as --backbone"
        return Check("hub", DRIVER, "failed", f"{names} is not in the cache, and the hub reports: {reason}; {todo}")
    return Check("hub", DRIVER, "ok", f"has {names}")


def _from_hub(spec: SweepSpec) -> list[tuple[str, str, str | None]]:
    """List (kind, name, revision) of the files that a sweep loads from the hub."""
    from leebert.backbone_files import locate
    from leebert.training_data import effective_task

    needed: list[tuple[str, str, str | None]] = []
    # The checks of backbone and data report these errors.
    with contextlib.suppress(LeebertError):
        location, revision = locate(spec.backbone)
        if not Path(location).is_dir() and not is_network(spec.backbone):
            needed.append(("model", location, revision))
    with contextlib.suppress(LeebertError):
        data = data_config(spec)
        hub = effective_task(spec.task, data.group_by).hub
        if hub is not None and data.dir is None:
            repo, revision = (hub, None) if isinstance(hub, str) else (hub.repo, hub.revision)
            needed.append(("dataset", repo, revision))
    return needed
