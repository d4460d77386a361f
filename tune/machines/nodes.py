"""What the nodes of a cluster are like, asked by a task on each: versions, storage, data, backbone, GPUs.

What is sent to a node travels by value and imports the package itself, so that a node without it can say so.
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

from leebert.errors import SweepError

#: Libraries whose version changes results, or what can be sent between nodes; the code's own version counts too.
COMPARED = ("python", "torch", "transformers", "ray", "numpy")

SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class Question:
    """What a node is to look at beside its versions; None is not looked at.

    storage: the sweeps' folder. mark: the name of the driver's folder in it, see :func:`marked`. tokens: a token file.
    backbone: as the user names it. packages: more packages whose versions count.
    """

    storage: str | None = None
    mark: str | None = None
    tokens: str | None = None
    backbone: str | None = None
    gpus: bool = False
    packages: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class NodeFacts:
    """A node's answer. Each `*_error` is a sentence, empty where all is well or nothing was asked.

    error: why there is no answer at all. package_error: why the package can't be imported there.
    versions: as `leebert.provenance.versions`. code: as `leebert.provenance.code_version`.
    free_bytes: of the storage's file system. tokens: the token file's fingerprint.
    backbone: as `leebert.provenance.backbone_identity`. gpus: name and memory in bytes of each.
    """

    host: str
    node_id: str
    resources: Mapping[str, float]
    error: str = ""
    package_error: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    code: str = ""
    storage_error: str = ""
    free_bytes: int | None = None
    tokens: str = ""
    tokens_error: str = ""
    backbone: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    backbone_error: str = ""
    gpus: Sequence[tuple[str, int]] = ()

    @property
    def name(self) -> str:
        """Host and the beginning of the node's id, as Ray prints it: several nodes may share a host."""
        return f"{self.host} ({self.node_id[:6]})"


@dataclasses.dataclass(frozen=True)
class Stamp:
    """What trials of one sweep must have in common: the versions in :data:`COMPARED` and of `packages`, and the code.

    packages: those that the sweep's parts of other packages come from.
    """

    versions: Mapping[str, str]
    code: str
    packages: tuple[str, ...] = ()

    @classmethod
    def here(cls, packages: tuple[str, ...] = ()) -> Stamp:
        """This process's."""
        from leebert.provenance import code_version, versions

        return cls(versions(packages), code_version(), packages)

    def differences(self, versions: Mapping[str, str], code: str) -> list[tuple[str, str, str]]:
        """(what, there, here) of each difference to a node's versions and code.

        A build's label after `+` is no difference: a head without a GPU has another build of torch than its workers.
        """
        names = (*COMPARED, *self.packages)
        pairs = [(name, versions.get(name, "none"), self.versions.get(name, "none")) for name in names]
        pairs.append(("leebert", code, self.code))
        return [p for p in pairs if p[1] != p[2] and (p[0] == "leebert" or _public(p[1]) != _public(p[2]))]

    def require(self) -> None:
        """SweepError where this process differs: for nodes that joined after :func:`check_versions`."""
        here = Stamp.here(self.packages)
        if found := self.differences(here.versions, here.code):
            raise SweepError(_refusal([(socket.gethostname(), *row) for row in found]))


def check_versions(address: str | None, timeout: float = SECONDS, packages: tuple[str, ...] = ()) -> None:
    """SweepError where a node of the cluster differs from the driver; nothing is asked of this machine alone.

    Ray must be up. A node that doesn't answer within `timeout` seconds is refused too: no trial would start there.
    `packages`: those that the sweep's parts of other packages come from.
    """
    if address is None:
        return
    stamp = Stamp.here(packages)
    rows = []
    for node in ask(Question(packages=packages), timeout):
        if node.error or node.package_error:
            rows.append((node.name, "package", node.error or node.package_error, stamp.code))
        else:
            rows += [(node.name, *row) for row in stamp.differences(node.versions, node.code)]
    if rows:
        raise SweepError(_refusal(rows))


def _public(version: str) -> str:
    return version.partition("+")[0]


def _refusal(rows: Iterable[tuple[str, str, str, str]]) -> str:
    table = [("node", "what", "there", "driver"), *rows]
    widths = [max(len(row[i]) for row in table) for i in range(3)]
    lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in table]
    return "nodes differ from the driver; install the same Python, packages and checkout on all:\n" + "\n".join(lines)


def ask(question: Question, timeout: float = SECONDS) -> list[NodeFacts]:
    """The answer of every node that is alive, by host; Ray must be up. Never raises for what is wrong on a node."""
    import ray

    alive = {n["NodeID"]: n for n in ray.nodes() if n["Alive"]}
    answers = run_on(alive, _look, dataclasses.asdict(question), timeout=timeout)
    still = {n["NodeID"] for n in ray.nodes() if n["Alive"]}
    found = []
    for node_id in sorted(still & alive.keys(), key=lambda n: (alive[n]["NodeManagerHostname"], n)):
        answer, node = answers[node_id], alive[node_id]
        facts: dict[str, Any] = {"host": node["NodeManagerHostname"]}
        facts |= {"error": sentence(answer)} if isinstance(answer, Exception) else answer
        found.append(NodeFacts(node_id=node_id, resources=node["Resources"], **facts))
    return found


def run_on(nodes: Iterable[str], function: Callable[..., Any], *args: Any, timeout: float) -> dict[str, Any]:
    """`function(node_id, *args)` on each of the nodes (Ray's ids) → its value, or the exception that it ended in.

    It runs beside trials on nodes that are full. The function's module is sent along.
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
    answers: dict[str, Any] = {}
    for ref in ready:
        try:
            answers[refs[ref]] = ray.get(ref)
        except Exception as error:  # whatever a node dies of is its answer
            answers[refs[ref]] = error
    for ref in late:
        ray.cancel(ref, force=True)
        answers[refs[ref]] = TimeoutError(f"no answer within {timeout:g} s; look at its load and at `ray status`")
    return answers


@contextlib.contextmanager
def marked(storage: Path) -> Iterator[Path]:
    """A folder of the driver's in the storage, by which nodes recognise it; afterwards all is as it was.

    Raises OSError where the storage can't be written.
    """
    made = [folder for folder in (storage, *storage.parents) if not folder.exists()]
    mark = storage / f".doctor-{uuid.uuid4().hex}"
    try:
        mark.mkdir(parents=True)
        (mark / "driver").write_text(mark.name)
        yield mark
    finally:
        shutil.rmtree(mark, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):  # never made, or somebody else's by now
                folder.rmdir()


def unseen(mark: Path, node: NodeFacts) -> str:
    """Why the driver doesn't see the file that a node wrote into the marked folder; empty where it does."""
    try:
        return "" if (mark / node.node_id).read_text() == node.node_id else "a file written there arrives altered"
    except OSError as error:
        return f"a file written there is not seen by the driver ({error.strerror})"


# What runs on a node.


def _look(node_id: str, question: dict[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {"host": socket.gethostname(), "versions": {"python": platform.python_version()}}
    if question["storage"]:
        facts |= _look_at_storage(node_id, Path(question["storage"]), question["mark"])
    try:
        from leebert.provenance import code_version, versions

        facts |= {"versions": versions(question["packages"]), "code": code_version()}
    except Exception as error:
        return facts | {"package_error": sentence(error)}
    if question["tokens"]:
        facts |= _attempt("tokens", _fingerprint, question["tokens"])
    if question["backbone"]:
        facts |= _attempt("backbone", _identity, question["backbone"])
    if question["gpus"]:
        facts["gpus"] = _gpus()
    return facts


def _look_at_storage(node_id: str, storage: Path, mark: str) -> dict[str, Any]:
    if not storage.is_dir():
        return {"storage_error": f"there is no folder {storage}; mount the driver's storage there"}
    facts: dict[str, Any] = {"free_bytes": shutil.disk_usage(storage).free}
    try:
        same = (storage / mark / "driver").read_text() == mark
    except OSError:
        same = False
    if not same:
        return facts | {"storage_error": f"{storage} is another folder than the driver's; mount the same file system"}
    try:
        (storage / mark / node_id).write_text(node_id)
    except OSError as error:
        return facts | {"storage_error": f"{storage} can't be written: {error.strerror}"}
    return facts


def _attempt(name: str, look: Callable[[str], Any], what: str) -> dict[str, Any]:
    try:
        return {name: look(what)}
    except Exception as error:
        return {f"{name}_error": sentence(error)}


def _fingerprint(path: str) -> str:
    from leebert.data import arrow

    return arrow.fingerprint(path)


def _identity(spec: str) -> dict[str, Any]:
    from leebert.backbone import load_encoder
    from leebert.images.backbones import is_network
    from leebert.provenance import backbone_identity

    found = backbone_identity(spec)
    if "weights" not in found and not is_network(
        spec
    ):  # without a digest to compare, only loading shows that the weights are there
        load_encoder(spec)
        found = backbone_identity(spec)  # a hub's weights are in its local copy now
    return found


def _gpus() -> list[tuple[str, int]]:
    import torch

    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [(gpu.name, gpu.total_memory) for gpu in found]


def sentence(error: Exception) -> str:
    """An exception as one line; Ray's wrap the original's traceback, whose last line says what happened."""
    lines = [line for line in str(getattr(error, "cause", None) or error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__
