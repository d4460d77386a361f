"""Real nodes that are lost, taken away or cut off while a sweep runs on them: separate raylets, the project's settings."""

import os
import signal
import time

import psutil
import pytest
import toy_sweep
from clusters import wait_until
from toy_problems import told

from tune.store.ledger import Ledger

pytestmark = pytest.mark.slow

TRAINING = {"max_epochs": 3}
EPOCHS = 4 * 2 * 3  # configurations, folds, epochs


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Every score of the same sweep where nothing happens."""
    return toy_sweep.undisturbed(tmp_path_factory.mktemp("plain"), **TRAINING)


@pytest.fixture(scope="module")
def pool(nodes):
    """The nodes that are up; a test takes one away, the next brings another."""
    up = []
    yield up
    for node in up:
        nodes.remove(node)


@pytest.fixture
def sweep(nodes, pool, tmp_path):
    """A sweep on two nodes: its folder, its process, the node of its first trial, the other one."""
    marks = tmp_path / "marks"
    marks.mkdir()
    while len(pool) < 2:
        pool.append(nodes.add(cpus=1))
    process = toy_sweep.start(
        tmp_path, address=nodes.address, problem="PlacedProblem", options={"marks": str(marks), "pause": 0.06},
        cpus=1, training=TRAINING,
    )  # fmt: skip
    ledger = Ledger(tmp_path / "ledger")
    try:
        wait_until(lambda: process.poll() is not None or (told(marks) and ledger.read().fold_epochs >= 3))
        assert process.poll() is None, process.communicate()
        lost, other = sorted(pool, key=lambda node: node.id != told(marks)[0]["node"])
        yield tmp_path, process, lost, other
    finally:
        process.kill()
        process.communicate()
        pool.remove(lost)
        nodes.remove(lost)


def trials_on(marks, node):
    return {line["pid"] for line in told(marks) if line["node"] == node.id}


def check_went_on(folder, undisturbed):
    """All done, with the same scores, each epoch in one counted record, and no failure but the nodes'."""
    state = Ledger(folder / "ledger").read()
    assert [c.state for c in state.history()] == ["complete"] * 4
    assert toy_sweep.scores(state) == undisturbed
    counted = [
        (c, r["seed"], r["fold"], r["epoch"])
        for c, attempts in state.attempts.items()
        for name in attempts.values()
        for r in Ledger(folder / "ledger").records_of(c, name)
        if r["kind"] == "epoch" and state.counts(r)
    ]
    assert len(counted) == len(set(counted)) == EPOCHS
    failures = [f for known in state.failures.values() for f in known]
    assert {f["reason"] for f in failures} == {"node"}, failures
    assert not any(f["final"] for f in failures)
    assert not list((folder / "checkpoints").iterdir())
    assert not list(folder.glob(".ray-*"))
    return state


def test_a_node_that_is_taken_away_with_notice_is_no_failure(nodes, sweep, undisturbed):
    folder, process, lost, _ = sweep
    nodes.drain(lost, seconds=2)
    os.kill(lost.raylet, signal.SIGKILL)
    assert toy_sweep.finished(process) == "finished"
    assert check_went_on(folder, undisturbed).failures


def test_a_lost_node_is_noticed_and_what_its_trials_write_afterwards_is_ignored_and_removed(nodes, sweep, undisturbed):
    """A node that is cut off: its raylet answers no more, and its trials go on where Ray can't reach them."""
    folder, process, lost, other = sweep
    zombies = trials_on(folder / "marks", lost)
    assert {lost.id, other.id} <= nodes.alive()
    for pid in (lost.raylet, *zombies):
        os.kill(pid, signal.SIGSTOP)
    stopped, before = time.monotonic(), len(told(folder / "marks"))
    ledger = Ledger(folder / "ledger")
    try:
        wait_until(lambda: lost.id not in nodes.alive())
        assert time.monotonic() - stopped < 7, "two health checks of 2.2 seconds, and the one that was under way"
        given_up = wait_until(lambda: {c: a for c, a in ledger.read().attempts.items() if len(a) > 1})
    finally:
        for pid in zombies:
            os.kill(pid, signal.SIGCONT)
    first = {(config, names[1]): ledger.read().fences[config][1] for config, names in given_up.items()}

    def has_written() -> bool:
        return any(len(list(ledger.records_of(*attempt))) > fence for attempt, fence in first.items())

    # On a busy machine Ray may end it before its next epoch is done: then it has nothing to be ignored.
    wait_until(lambda: has_written() or not any(psutil.pid_exists(pid) for pid in zombies))
    assert toy_sweep.finished(process) == "finished"
    assert check_went_on(folder, undisturbed).failures
    # Whoever goes on, even a trial that was lost before its first epoch, does so on the other node.
    late = [line for line in told(folder / "marks")[before:] if line["pid"] not in zombies]
    assert {line["node"] for line in late} == {other.id}
