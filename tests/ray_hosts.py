"""A Ray cluster on hosts (see hosts.py), started by the project's own cluster/start.sh, and sweeps on it that lose machines."""

from __future__ import annotations

import collections
import dataclasses
import subprocess
import time
from pathlib import Path
from typing import Any

from encoders import save_backbone, write_task
from hosts import ROOT, Host, seconds_until

from leebert.yaml import dump_yaml
from tune.store.folder import SweepFolder

TRIAL = " ray::ResourceTrainable"
MLFLOW = "http://127.0.0.1:5000"

# Prints every change of a node's life as it is known to the head.
WATCH = """
import sys, time, ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
known = {}
while True:
    for node in ray.nodes():
        if known.get(node["NodeID"]) != node["Alive"]:
            known[node["NodeID"]] = node["Alive"]
            print(time.time(), node["NodeManagerAddress"], int(node["Alive"]), flush=True)
    time.sleep(0.05)
"""


class Watch:
    """When nodes came and went, as the head sees it; runs on the head."""

    def __init__(self, head: Host) -> None:
        self.log = head.hosts.folder / f"nodes-{time.time_ns()}"
        self.process = head.start("python", "-c", WATCH, log=self.log, RAY_AUTH_MODE="token")

    def events(self, host: Host) -> list[tuple[float, bool]]:
        """Time and whether it lived, of all nodes that were on a host."""
        if self.process.poll() is not None:
            raise AssertionError(f"the watch ended: {self.log.read_text()}")
        lines = [line.split() for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [(float(w[0]), w[2] == "1") for w in lines if len(w) == 3 and w[1] == host.ip]

    def alive(self, host: Host) -> bool:
        events = self.events(host)
        return bool(events) and events[-1][1]

    def wait_alive(self, *hosts: Host, within: float = 300) -> float:
        return seconds_until(lambda: all(map(self.alive, hosts)), within, f"{[h.name for h in hosts]} are up")

    def dead_after(self, host: Host, since: float, within: float = 300) -> float:
        """Seconds from a point in time to the host's node being declared dead."""
        seconds_until(lambda: not self.alive(host), within, f"the head notices that {host.name} is lost")
        return self.events(host)[-1][0] - since

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def start_head(head: Host, storage: Path) -> None:
    """The head of a cluster, by the shared commands; makes the token that `start_worker` copies."""
    _prepare(head)
    head.run("ray", "get-auth-token", "--generate")
    head.run("bash", "-c", f"~/leebert/cluster/start.sh {storage} ray start --head")


def start_worker(host: Host, head: Host, storage: Path, cpus: int = 2) -> None:
    """A worker, or a worker again."""
    _prepare(host)
    (host.home / ".ray").mkdir(exist_ok=True)
    (host.home / ".ray" / "auth_token").write_text((head.home / ".ray" / "auth_token").read_text())
    start = f"~/leebert/cluster/start.sh {storage} ray start --address={head.ip}:6379 --num-cpus={cpus}"
    host.run("bash", "-c", f"ray stop --force; {start}")


def _prepare(host: Host) -> None:
    if not (host.home / "venv").exists():
        host.install()
        (host.home / "leebert").symlink_to(ROOT)


def write_space(folder: Path, rows: int = 1500, epochs: int = 4) -> Path:
    """A space of two configurations on two folds, of text, with an encoder that takes about a second for an epoch."""
    save_backbone(folder / "backbone", layers=3)
    path = folder / "space.yaml"
    values = {
        "task": write_task(folder / "data", n=rows), "backbone": str(folder / "backbone"), "max_length": 32,
        "algorithms": ["clo-v2", "blo"], "space": {"lr_theta": [1e-3]}, "folds": 2,
        "training": {"batch_size": 8, "max_epochs": epochs, "precision": "fp32"},
        "resources": {"cpus": 1},
    }  # fmt: skip
    path.write_text(dump_yaml(values))
    return path


def sweep_on(head: Host, space: Path, sweep: Path, log: Path) -> subprocess.Popen[bytes]:
    """A sweep that is driven from the head, its process under way."""
    words = ("leebert-tune", "sweep", str(space), "--name", sweep.name, "--storage", str(sweep.parent))
    return head.start(*words, "--address", "auto", log=log, RAY_AUTH_MODE="token", MLFLOW_TRACKING_URI=MLFLOW)


def wait_for_epochs(sweep: Path, epochs: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the first configuration of a sweep under way has so many epochs in the ledger."""

    def there() -> bool:
        assert process.poll() is None, log.read_text()
        if not (sweep / "manifest.json").is_file():
            return False
        history = SweepFolder(sweep).ledger.read().history()
        return bool(history) and sum(len(cell.epochs) for cell in history[0].cells) >= epochs

    seconds_until(there, 300, f"{epochs} epochs of {sweep.name}")


def host_of_first_trial(*hosts: Host) -> Host:
    """Where the trial runs that began first, which is the first configuration's."""
    ages = {}
    for host in hosts:
        processes = host.run("ps", "-eo", "etimes,args").stdout.splitlines()
        found = [int(line.split()[0]) for line in processes if TRIAL in line]
        if found:
            ages[host] = max(found)
    return max(ages, key=lambda host: ages[host])


@dataclasses.dataclass(frozen=True)
class Found:
    """What a sweep's ledger says after the loss of a machine."""

    trained: collections.Counter[tuple[str, int, int, int]]  # how often each epoch was trained and counts
    attempts: dict[str, int]
    status: str
    goes_on: float  # seconds from the loss to the first epoch of an attempt that was granted after it
    scores: dict[tuple[str, int, int], Any]


def examine(sweep: Path, at: float) -> Found:
    """Read a sweep's ledger as it lies on the disk: every record that counts, not only the first of an epoch."""
    ledger = SweepFolder(sweep).ledger
    state, fences = ledger.read(), ledger.fences()
    trained: collections.Counter[tuple[str, int, int, int]] = collections.Counter()
    granted: dict[tuple[str, int], float] = {}
    later = []
    for r in ledger.in_order():
        if r["kind"] == "grant":
            granted[r["config"], r["attempt"]] = r["time"]
        elif r["kind"] == "epoch":
            if r["seq"] < fences[r["config"]].get(r["attempt"], r["seq"] + 1):
                trained[r["config"], r["seed"], r["fold"], r["epoch"]] += 1
            if r["attempt"] > 1 and granted[r["config"], r["attempt"]] > at:
                later.append(r["time"] - at)
    scores = {cell: (r["score"], r["exits"]["score"]) for cell, r in state.cells.items()}
    attempts = {config: len(names) for config, names in state.attempts.items()}
    return Found(trained, attempts, state.end["status"] if state.end else "running", min(later), scores)
