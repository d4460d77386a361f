"""Collect facts of all nodes of a cluster by a task on each: versions, storage, data, backbone, GPUs.

The task's function is pickled by value and imports the package itself, so that a node without the package reports that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from leebert.console import aligned
from leebert.errors import SweepError

#: Libraries whose versions affect results or communication between nodes; the version of this package is also compared.
COMPARED = ("python", "torch", "transformers", "ray", "numpy")

SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class Query:
    """The facts to collect on a node in addition to its versions; None: not collected.

    Attributes:
        storage: The storage folder of sweeps.
        mark: Name of the driver's folder in it (:func:`marked`).
        tokens: A token file.
        backbone: Name of the backbone.
        gpus: Whether to list GPUs.
        packages: Further packages whose versions are compared.
    """

    storage: str | None = None
    mark: str | None = None
    tokens: str | None = None
    backbone: str | None = None
    gpus: bool = False
    packages: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class NodeFacts:
    """The facts of a node. Each `*_error` is a sentence; empty without an error or without a query.

    Attributes:
        host: Name of the host.
        node_id: Ray's id of the node.
        resources: Ray's resources of the node.
        error: Why the node sent no facts.
        package_error: Why the package can't be imported.
        versions: As :func:`leebert.provenance.versions`.
        code: As :func:`leebert.provenance.code_version`.
        storage_error: What is wrong with the storage.
        tokens: Fingerprint of the token file.
        tokens_error: Why the token file can't be read.
        backbone: As :func:`leebert.provenance.backbone_identity`.
        backbone_error: Why the backbone can't be loaded.
        gpus: Name and memory in bytes of each GPU.
    """

    host: str
    node_id: str
    resources: Mapping[str, float]
    error: str = ""
    package_error: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    code: str = ""
    storage_error: str = ""
    tokens: str = ""
    tokens_error: str = ""
    backbone: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    backbone_error: str = ""
    gpus: Sequence[tuple[str, int]] = ()

    @property
    def name(self) -> str:
        """Host and the start of the node's id, since several nodes can share a host."""
        return f"{self.host} ({self.node_id[:6]})"


@dataclasses.dataclass(frozen=True)
class Stamp:
    """Versions that all trials of a sweep must share: of this package, of :data:`COMPARED` and of `packages`.

    Attributes:
        versions: Versions of libraries by name.
        code: Version of this package.
        packages: Packages from which the sweep uses plugins.
    """

    versions: Mapping[str, str]
    code: str
    packages: tuple[str, ...] = ()

    @classmethod
    def local(cls, packages: tuple[str, ...] = ()) -> Stamp:
        """Return the versions of this process."""
        from leebert.provenance import code_version, versions

        return cls(versions(packages), code_version(), packages)

    def differences(self, versions: Mapping[str, str], code: str) -> list[tuple[str, str, str]]:
        """Compare with the versions of a node.

        Build labels after `+` are ignored, since a head without a GPU has another build of torch than its workers.

        Args:
            versions: The node's versions of libraries.
            code: The node's version of this package.

        Returns:
            (library, version on the node, version here) of each difference.
        """
        names = (*COMPARED, *self.packages)
        pairs = [(name, versions.get(name, "none"), self.versions.get(name, "none")) for name in names]
        pairs.append(("leebert", code, self.code))
        return [p for p in pairs if p[1] != p[2] and (p[0] == "leebert" or _public(p[1]) != _public(p[2]))]

    def require(self) -> None:
        """Raise SweepError if this process differs, for nodes that joined after :func:`check_versions`."""
        local = Stamp.local(self.packages)
        if differences := self.differences(local.versions, local.code):
            raise SweepError(_refusal([(socket.gethostname(), *row) for row in differences]))


def check_versions(address: str | None, timeout: float = SECONDS) -> None:
    """Check that all nodes of a cluster have the driver's versions. Ray must be initialised.

    Packages that plugins come from are the matter of :func:`tune.running.outside.check_plugins`, which names the plugin.

    Args:
        address: Address of the cluster; None: this machine only, which needs no check.
        timeout: Seconds to wait for a node.

    Raises:
        SweepError: A node differs, or does not respond in time.
    """
    if address is None:
        return
    stamp = Stamp.local()
    rows = []
    for node in query_nodes(Query(), timeout):
        if node.error or node.package_error:
            rows.append((node.name, "package", node.error or node.package_error, stamp.code))
        else:
            rows += [(node.name, *row) for row in stamp.differences(node.versions, node.code)]
    if rows:
        raise SweepError(_refusal(rows))


def _public(version: str) -> str:
    return version.partition("+")[0]


def _refusal(rows: Iterable[tuple[str, str, str, str]]) -> str:
    table = [("node", "library", "on the node", "on the driver"), *rows]
    intro = "nodes differ from the driver; install the same Python, packages and checkout on all:"
    return "\n".join([intro, *aligned(table)])


def query_nodes(query: Query, timeout: float = SECONDS) -> list[NodeFacts]:
    """Collect facts of all alive nodes, ordered by host. Ray must be initialised.

    Args:
        query: The facts to collect.
        timeout: Seconds to wait for a node.

    Returns:
        The facts; problems of a node are in its facts and raise nothing.
    """
    import ray

    alive = {n["NodeID"]: n for n in ray.nodes() if n["Alive"]}
    results = run_on(alive, _collect, dataclasses.asdict(query), timeout=timeout)
    remaining = {n["NodeID"] for n in ray.nodes() if n["Alive"]}
    all_facts = []
    for node_id in sorted(remaining & alive.keys(), key=lambda n: (alive[n]["NodeManagerHostname"], n)):
        result, node = results[node_id], alive[node_id]
        facts: dict[str, Any] = {"host": node["NodeManagerHostname"]}
        facts |= {"error": sentence(result)} if isinstance(result, Exception) else result
        all_facts.append(NodeFacts(node_id=node_id, resources=node["Resources"], **facts))
    return all_facts


def run_on(nodes: Iterable[str], function: Callable[..., Any], *args: Any, timeout: float) -> dict[str, Any]:
    """Run a function on nodes, also on fully occupied ones. Its module is pickled by value.

    Args:
        nodes: Ray's ids of the nodes.
        function: Called as `function(node_id, *args)`.
        *args: Its further arguments.
        timeout: Seconds to wait.

    Returns:
        By node, the function's result or the exception that it raised.
    """
    import ray
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    module = sys.modules[function.__module__]
    cloudpickle.register_pickle_by_value(module)
    try:
        task = ray.remote(num_cpus=0, max_retries=0)(function)
        refs = {
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n, soft=False)).remote(n, *args): n
            for n in nodes
        }
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    ready, late = ray.wait(list(refs), num_returns=len(refs), timeout=timeout) if refs else ([], [])
    results: dict[str, Any] = {}
    for ref in ready:
        try:
            results[refs[ref]] = ray.get(ref)
        except Exception as error:  # reported in the node's facts
            results[refs[ref]] = error
    for ref in late:
        ray.cancel(ref, force=True)
        results[refs[ref]] = TimeoutError(f"no response within {timeout:g} s; check its load and `ray status`")
    return results


@contextlib.contextmanager
def marked(storage: Path) -> Iterator[Path]:
    """Context with a temporary folder of the driver in the storage, by which nodes recognise the storage.

    Args:
        storage: The storage folder of sweeps.

    Yields:
        The folder.

    Raises:
        OSError: The storage can't be written.
    """
    created = [folder for folder in (storage, *storage.parents) if not folder.exists()]
    mark = storage / f".doctor-{uuid.uuid4().hex}"
    try:
        mark.mkdir(parents=True)
        (mark / "driver").write_text(mark.name)
        yield mark
    finally:
        shutil.rmtree(mark, ignore_errors=True)
        for folder in created:
            with contextlib.suppress(OSError):  # not created, or in use by another process
                folder.rmdir()


def unseen(mark: Path, node: NodeFacts) -> str:
    """Explain why the driver can't read the file that a node wrote into the marked folder; empty if it can."""
    try:
        return (
            ""
            if (mark / node.node_id).read_text() == node.node_id
            else "the driver reads other contents than the node wrote"
        )
    except OSError as error:
        return f"the driver does not see a file that the node wrote ({error.strerror})"


# Functions that run on a node.


def _collect(node_id: str, query: dict[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {"host": socket.gethostname(), "versions": {"python": platform.python_version()}}
    if query["storage"]:
        facts |= _check_storage(node_id, Path(query["storage"]), query["mark"])
    try:
        from leebert.provenance import code_version, versions

        facts |= {"versions": versions(query["packages"]), "code": code_version()}
    except Exception as error:
        return facts | {"package_error": sentence(error)}
    if query["tokens"]:
        facts |= _attempt("tokens", _fingerprint, query["tokens"])
    if query["backbone"]:
        facts |= _attempt("backbone", _identity, query["backbone"])
    if query["gpus"]:
        facts["gpus"] = _gpus()
    return facts


def _check_storage(node_id: str, storage: Path, mark: str) -> dict[str, Any]:
    if not storage.is_dir():
        return {"storage_error": f"no folder {storage}; mount the driver's storage there"}
    try:
        is_same = (storage / mark / "driver").read_text() == mark
    except OSError:
        is_same = False
    if not is_same:
        return {"storage_error": f"{storage} is another folder than the driver's; mount the same file system"}
    try:
        (storage / mark / node_id).write_text(node_id)
    except OSError as error:
        return {"storage_error": f"{storage} can't be written: {error.strerror}"}
    return {}


def _attempt(name: str, function: Callable[[str], Any], argument: str) -> dict[str, Any]:
    try:
        return {name: function(argument)}
    except Exception as error:
        return {f"{name}_error": sentence(error)}


def _fingerprint(path: str) -> str:
    from leebert.data import arrow

    return arrow.fingerprint(path)


def _identity(spec: str) -> dict[str, Any]:
    from leebert.backbone import load_encoder
    from leebert.images.backbones import is_network
    from leebert.provenance import backbone_identity

    identity = backbone_identity(spec)
    if "weights" not in identity and not is_network(
        spec
    ):  # without a digest, only loading shows that the weights exist
        load_encoder(spec)
        identity = backbone_identity(spec)  # the hub's weights are now in the local cache
    return identity


def _gpus() -> list[tuple[str, int]]:
    import torch

    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [(gpu.name, gpu.total_memory) for gpu in devices]


def sentence(error: Exception) -> str:
    """Format an exception as one line; Ray's exceptions contain the original traceback, whose last line is the error."""
    lines = [line for line in str(getattr(error, "cause", None) or error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__
