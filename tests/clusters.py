"""A Ray cluster of several raylets on this machine, in a process of its own, beside the test session's own Ray."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from ahead import ENVIRONMENT, prepared

ROOT = Path(__file__).resolve().parents[1]


def health_checks() -> dict[str, str]:
    """The settings with which the project's clusters notice a lost node."""
    places = (ROOT / "cluster" / "start.sh", ROOT / "cluster.yaml")
    text = "".join(path.read_text() for path in places if path.is_file())
    found = dict(re.findall(r"(RAY_health_check_\w+)=(\d+)", text))
    assert len(found) == 3, found
    return found


def wait_until(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    """What `condition` returns as soon as that is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")


@dataclasses.dataclass(frozen=True)
class ClusterNode:
    """A node: Ray's id of it, and its raylet's process."""

    id: str
    raylet: int


class Nodes:
    """The cluster as tests see it: a head without CPUs, and the nodes that they add.

    Its processes find packages in `packages` and models of the hub in `hub`, unless a node's environment says otherwise.
    """

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        self.server, self.packages, self.hub = server, folder / "packages", folder / "hub"
        self.alone = threading.Lock()  # held by whoever needs the cluster to hold his nodes only
        self.address: str = self._ask({})

    def add(
        self, cpus: int, gpus: int = 0, env: dict[str, str] | None = None, hidden: Path | None = None
    ) -> ClusterNode:
        """A node; `hidden` is a folder that is another one there, as where the shared file system is not mounted."""
        options = {"num_cpus": cpus, "num_gpus": gpus, "env_vars": env}
        return ClusterNode(**self._ask({"add": options, "hidden": str(hidden) if hidden else None}))

    def remove(self, node: ClusterNode) -> None:
        """The node's processes ended, whether its raylet lives or not."""
        self._ask({"remove": node.id})

    def drain(self, node: ClusterNode, seconds: float) -> None:
        """Give notice, as clouds do, that a node will be taken away in so many seconds."""
        self._ask({"drain": node.id, "until": time.time() + seconds})

    def alive(self) -> set[str]:
        """The nodes that Ray takes for alive."""
        return set(self._ask({"alive": True}))

    def _ask(self, what: dict[str, Any]) -> Any:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(what) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())


@prepared()
def nodes(_: Path) -> Iterator[Nodes]:
    """A cluster with the project's own settings and no node that trials could run on, for the whole test session."""
    with tempfile.TemporaryDirectory(prefix="ray-") as temporary:  # sockets lie in it: its path must be short
        # A folder of its own: Ray notes the newest cluster in it, which `ray.init()` of others would join.
        folder = Path(temporary)
        env = {**ENVIRONMENT, **health_checks(), "RAY_TMPDIR": temporary}
        env |= {"PYTHONPATH": str(folder / "packages"), "HF_HOME": str(folder / "hub")}
        (folder / "packages").mkdir()
        server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=env,
        )  # fmt: skip
        try:
            yield Nodes(server, folder)
        finally:
            own = psutil.Process(server.pid)
            everything = [own, *own.children(recursive=True)]
            for process in everything:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            server.communicate()
            psutil.wait_procs(everything, timeout=10)


def _hiding(folder: str, start: Callable[[], Any]) -> Any:
    """What `start` returns, called where an empty file system stands in place of the folder.

    That is a thread with a mount namespace to itself. It stays: the kernel ends Ray's processes with the thread that
    started them.
    """
    results: queue.Queue[Any] = queue.Queue()

    def run() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        for call in (
            lambda: libc.unshare(0x20000),  # CLONE_NEWNS
            lambda: libc.mount(b"none", b"/", None, 0x44000, None),  # MS_PRIVATE | MS_REC
            lambda: libc.mount(b"none", folder.encode(), b"tmpfs", 0, None),
        ):
            assert call() == 0, os.strerror(ctypes.get_errno())
        results.put(start())
        threading.Event().wait()

    threading.Thread(target=run, daemon=True).start()
    return results.get(timeout=60)


def serve() -> None:
    """Answer one request a line until there are no more."""
    from ray._raylet import GcsClient
    from ray.cluster_utils import Cluster
    from ray.core.generated import autoscaler_pb2

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints
    needless = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **needless})
    started: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer: Any = cluster.address
        if "add" in request:
            start = functools.partial(cluster.add_node, **{k: v for k, v in request["add"].items() if v is not None})
            cluster._shutdown_at_exit = not request["hidden"]  # which would set handlers of signals
            node = _hiding(request["hidden"], start) if request["hidden"] else start()
            started[node.node_id] = node
            answer = {"id": node.node_id, "raylet": node.all_processes["raylet"][0].process.pid}
        elif "remove" in request:
            cluster.remove_node(started.pop(request["remove"]), allow_graceful=False)
        elif "drain" in request:
            why = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
            answer = GcsClient(cluster.address).drain_node(request["drain"], why, "spot", int(1000 * request["until"]))
        elif "alive" in request:
            answer = [n["NodeID"] for n in cluster.global_state.node_table() if n["Alive"]]
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
