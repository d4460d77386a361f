"""Time until a cluster with our settings detects a lost machine, and what a sweep loses with it.

Head and two workers are separate hosts in Linux namespaces (tests/hosts.py), started by cluster/start.sh. A worker is
killed (all its processes at once) and cut off (its network is removed), first idle, then while trials of a real sweep
run on it. Another test keeps a worker at full load on all cores. Needs root on Linux, iproute2, openssh-server and
rsync; takes about five minutes.

Targets: a loss is detected within 5 s; no epoch is trained twice; a machine under full load is never given up.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from common import Result, scratch, stop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from hosts import Host, Hosts, why_not
from ray_hosts import (
    Watch,
    examine,
    host_of_first_trial,
    start_head,
    start_worker,
    sweep_on,
    wait_for_epochs,
    write_space,
)

SETTLED = 6  # seconds after which a new node is looked after; Ray's own delay is 5
LOSSES = {"killed": (Host.crash, Host.boot), "cut off": (Host.cut, Host.heal)}


def idle(result: Result, watch: Watch, head: Host, worker: Host, storage: Path) -> None:
    """Lose an idle worker."""
    for kind, (lose, mend) in LOSSES.items():
        noticed = []
        for _ in range(result.options.rounds):
            time.sleep(SETTLED)
            at = time.time()
            lose(worker)
            noticed.append(watch.dead_after(worker, at))
            mend(worker)
            start_worker(worker, head, storage)
            watch.wait_alive(worker)
        result.target(f"idle worker {kind}: noticed after, s", noticed, 5)


def loaded(result: Result, watch: Watch, worker: Host) -> None:
    """Busy loops on all of a worker's cores."""
    log = worker.hosts.folder / "load"
    spinning = [worker.start("python", "-c", "while True: pass", log=log) for _ in range(os.cpu_count() or 1)]
    before = len(watch.events(worker))
    time.sleep(result.options.load)
    result.target(f"given up in {result.options.load:g} s at full load", len(watch.events(worker)) - before, 0)
    for process in spinning:
        process.kill()
        process.wait()


def sweeping(result: Result, watch: Watch, head: Host, workers: list[Host], storage: Path) -> None:
    """Lose the worker that runs a sweep's first trial."""
    space = write_space(head.hosts.folder / "text")
    scores = []
    for kind, (lose, mend) in LOSSES.items():
        sweep, log = storage / kind.replace(" ", "-"), head.hosts.folder / "sweep.log"
        process = sweep_on(head, space, sweep, log)
        wait_for_epochs(sweep, 3, process, log)
        victim = host_of_first_trial(*workers)
        at = time.time()
        lose(victim)
        result.target(f"worker {kind} in a sweep: noticed after, s", watch.dead_after(victim, at), 5)
        if process.wait(timeout=300):
            stop(log.read_text())
        found = examine(sweep, at)
        result.figure(f"worker {kind} in a sweep: next epoch after", found.goes_on, "s")
        result.figure(f"worker {kind} in a sweep: epochs", len(found.trained))
        twice = sum(found.trained.values()) - len(found.trained)
        result.target(f"worker {kind} in a sweep: epochs trained twice", twice, 0)
        scores.append(found.scores)
        mend(victim)
        start_worker(victim, head, storage)
        watch.wait_alive(victim)
    differ = sum(scores[1][cell] != score for cell, score in scores[0].items())
    result.target("cells whose scores differ between the two", differ, 0)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=3, help="losses of an idle worker of each kind (%(default)s)")
    made.add_argument("--load", type=float, default=60, metavar="SECONDS", help="time at full load (%(default)s)")
    made.add_argument("--json", type=Path, metavar="FILE", help="append the result to this file as one JSON line")
    options = made.parse_args()
    options.device, options.threads = "cpu", 1
    if reason := why_not():
        stop(reason)
    result = Result("node_loss", options)
    with scratch() as folder, Hosts(folder / "hosts", "head", "w1", "w2") as hosts:
        head, *workers = hosts.all.values()
        storage = hosts.folder / "sweeps"
        storage.mkdir()
        start_head(head, storage)
        for worker in workers:
            start_worker(worker, head, storage)
        watch = Watch(head)
        watch.wait_alive(*workers)
        idle(result, watch, head, workers[-1], storage)
        loaded(result, watch, workers[-1])
        sweeping(result, watch, head, workers, storage)
        watch.close()
    result.end()


if __name__ == "__main__":
    main()
