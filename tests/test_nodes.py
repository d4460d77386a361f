"""Real nodes that are lost, taken away or cut off while a sweep runs on them: separate raylets, the project's settings."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import toy_sweep
from ahead import prepared
from clusters import ClusterNode, Nodes, wait_until
from toy_problems import told

from tune.store.ledger import Ledger, LedgerRecord, SweepState

pytestmark = pytest.mark.slow

TRAINING = {"max_epochs": 3}
EPOCHS = 4 * 2 * 3  # configurations, folds, epochs


@dataclasses.dataclass(frozen=True)
class Story:
    """A sweep on three nodes: one is taken away, then one is cut off, and the third trains what is left."""

    folder: Path
    taken_away: list[LedgerRecord]  # failures before the second node was cut off
    noticed: float  # seconds from the cut to the node being declared dead
    late: set[str]  # nodes on which cells began after the cut, but for those of the trials that were cut off
    last: ClusterNode
    status: str

    @functools.cached_property
    def state(self) -> SweepState:
        return Ledger(self.folder / "ledger").read()


@prepared(using=("nodes",))
def lost(folder: Path, nodes: Nodes) -> Iterator[Story]:
    with nodes.alone:
        story = happened(folder, nodes)
    yield story


def happened(folder: Path, nodes: Nodes) -> Story:
    (marks := folder / "marks").mkdir()
    ledger = Ledger(folder / "ledger")
    process = toy_sweep.start(
        folder, address=nodes.address, problem="GatheringProblem", options={"marks": str(marks), "pause": 0.06, "crowd": 3},
        cpus=1, training=TRAINING,
    )  # fmt: skip
    up = [nodes.add(cpus=1) for _ in range(3)]  # while the driver starts
    try:
        under_way(process, lambda: told(marks) and ledger.read().fold_epochs >= 3)
        first = told(marks)[0]
        up.sort(key=lambda node: node.id != first["node"])
        taken, cut, last = up
        nodes.drain(taken, seconds=2)
        os.kill(taken.raylet, signal.SIGKILL)
        under_way(
            process,
            lambda: (
                {line["node"] for line in told(marks)} == {node.id for node in up}
                and len(ledger.read().attempts[first["config"]]) > 1
            ),
        )
        failures = [f for known in ledger.read().failures.values() for f in known]
        noticed, zombies, before = cut_off(nodes, cut, folder)
        status = toy_sweep.finished(process)
        late = {line["node"] for line in told(marks)[before:] if line["pid"] not in zombies}
        return Story(folder, failures, noticed, late, last, status)
    finally:
        process.kill()
        process.communicate()
        for node in up:
            nodes.remove(node)


def under_way(process: subprocess.Popen[str], reached: Callable[[], Any]) -> None:
    wait_until(lambda: process.poll() is not None or reached())
    assert process.poll() is None, process.communicate()


def cut_off(nodes: Nodes, node: ClusterNode, folder: Path) -> tuple[float, set[int], int]:
    """A node's raylet answers no more, and its trials continue where Ray can't reach them.

    Returns after these have written: seconds until the loss was noticed, the trials, how many cells had begun before.
    """
    ledger = Ledger(folder / "ledger")
    zombies = {line["pid"] for line in told(folder / "marks") if line["node"] == node.id}
    assert node.id in nodes.alive()
    attempts = {config: len(names) for config, names in ledger.read().attempts.items()}
    for pid in (node.raylet, *zombies):
        os.kill(pid, signal.SIGSTOP)
    stopped, before = time.monotonic(), len(told(folder / "marks"))
    try:
        wait_until(lambda: node.id not in nodes.alive())
        noticed = time.monotonic() - stopped
        given_up = wait_until(lambda: {c: a for c, a in ledger.read().attempts.items() if len(a) > attempts.get(c, 1)})
    finally:
        for pid in zombies:
            os.kill(pid, signal.SIGCONT)
    state = ledger.read()
    ended = {(c, names[len(names) - 1]): state.fences[c][len(names) - 1] for c, names in given_up.items()}

    def has_written() -> bool:
        return any(len(list(ledger.records_of(*attempt))) > fence for attempt, fence in ended.items())

    # On a busy machine Ray may end it before its next epoch is done: then it has nothing to be ignored.
    wait_until(lambda: has_written() or not any(psutil.pid_exists(pid) for pid in zombies))
    return noticed, zombies, before


def test_the_sweep_has_the_scores_of_one_where_nothing_happens(lost: Story, tmp_path: Path) -> None:
    """Each epoch is in one record that counts."""
    assert lost.status == "finished"
    assert [c.state for c in lost.state.history()] == ["complete"] * 4
    assert toy_sweep.scores(lost.state) == toy_sweep.undisturbed(tmp_path, **TRAINING)
    ledger = Ledger(lost.folder / "ledger")
    counted = [
        (c, r["seed"], r["fold"], r["epoch"])
        for c, attempts in lost.state.attempts.items()
        for name in attempts.values()
        for r in ledger.records_of(c, name)
        if r["kind"] == "epoch" and lost.state.counts(r)
    ]
    assert len(counted) == len(set(counted)) == EPOCHS
    assert not list((lost.folder / "checkpoints").iterdir())
    assert not list(lost.folder.glob(".ray-*"))


def test_a_node_that_is_taken_away_with_notice_is_no_failure(lost: Story) -> None:
    assert {(f["reason"], f["final"]) for f in lost.taken_away} == {("node", False)}


def test_a_lost_node_is_noticed_and_what_its_trials_write_afterwards_is_ignored_and_removed(lost: Story) -> None:
    assert lost.noticed < 7, "two health checks of 2.2 seconds, and the one that was under way"
    failures = [f for known in lost.state.failures.values() for f in known]
    assert {(f["reason"], f["final"]) for f in failures} == {("node", False)}, failures
    assert len(failures) > len(lost.taken_away)
    # What was cut off, even a trial that was lost before its first epoch, continues on the last node.
    assert lost.late == {lost.last.id}
