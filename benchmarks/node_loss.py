"""How soon a cluster with our settings notices a lost machine, and what a sweep loses with it.

Head and two workers are hosts of their own in Linux namespaces (tests/hosts.py), started by cluster/start.sh as on any
cluster. A worker is killed (all its processes at once) and cut off (its network taken away), first idle, then with
trials of a real sweep on it; one is kept at full load on all cores. Needs root on Linux, iproute2, openssh-server and
rsync; takes some five minutes.

Targets: a loss is noticed within 5 s; no epoch is trained twice; a machine under full load is never given up.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from common import Result, scratch, stop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

SETTLED = 6  # seconds after which a new node is looked after; Ray's own delay is 5


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=3, help="losses of an idle worker of each kind (%(default)s)")
    made.add_argument("--load", type=float, default=60, metavar="SECONDS", help="time at full load (%(default)s)")
    made.add_argument("--json", type=Path, metavar="FILE", help="append the result to this file as one JSON line")
    options = made.parse_args()
    options.device, options.threads = "cpu", 1

    from hosts import Hosts, why_not
    from ray_hosts import (
        Watch,
        busy_with_trials,
        examine,
        start_head,
        start_worker,
        sweep_on,
        wait_for_epochs,
        write_space,
    )

    if reason := why_not():
        stop(reason)
    result = Result("node_loss", options)
    losses = {"killed": ("crash", "boot"), "cut off": ("cut", "heal")}
    with scratch() as folder, Hosts(folder / "hosts", "head", "w1", "w2") as hosts:
        head, w1, w2 = hosts.all.values()
        storage = hosts.folder / "sweeps"
        storage.mkdir()
        space = write_space(hosts.folder / "text")
        start_head(head, storage)
        for worker in (w1, w2):
            start_worker(worker, head, storage)
        watch = Watch(head)
        watch.wait_alive(w1, w2)

        for kind, (lose, mend) in losses.items():
            noticed = []
            for _ in range(options.rounds):
                time.sleep(SETTLED)
                at = time.time()
                getattr(w2, lose)()
                noticed.append(watch.dead_after(w2, at))
                getattr(w2, mend)()
                start_worker(w2, head, storage)
                watch.wait_alive(w2)
            result.target(f"idle worker {kind}: noticed after, s", noticed, 5)

        spinning = [
            w2.start("python", "-c", "while True: pass", log=folder / "load") for _ in range(os.cpu_count() or 1)
        ]
        before = len(watch.events(w2))
        time.sleep(options.load)
        result.target(f"given up in {options.load:g} s at full load", len(watch.events(w2)) - before, 0)
        for process in spinning:
            process.kill()
            process.wait()

        scores = []
        for kind, (lose, mend) in losses.items():
            sweep, log = storage / kind.replace(" ", "-"), folder / "sweep.log"
            process = sweep_on(head, space, sweep, log)
            wait_for_epochs(sweep, 5, process, log)
            (victim, *_) = busy_with_trials(w1, w2)
            at = time.time()
            getattr(victim, lose)()
            result.target(f"worker {kind} in a sweep: noticed after, s", watch.dead_after(victim, at), 5)
            if process.wait(timeout=300):
                stop(log.read_text())
            found = examine(sweep, at)
            result.figure(f"worker {kind} in a sweep: next epoch after", found.goes_on, "s")
            result.figure(f"worker {kind} in a sweep: epochs trained", sum(found.trained.values()))
            result.target(
                f"worker {kind} in a sweep: epochs trained twice", sum(found.trained.values()) - len(found.trained), 0
            )
            scores.append(found.scores)
            getattr(victim, mend)()
            start_worker(victim, head, storage)
            watch.wait_alive(victim)
        result.target(
            "cells whose scores differ between the two", sum(scores[1][c] != s for c, s in scores[0].items()), 0
        )
        watch.close()
    result.end()


if __name__ == "__main__":
    main()
