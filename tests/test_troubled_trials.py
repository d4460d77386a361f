"""Trials that hang, wait, find their checkpoints damaged or their clocks set back, in real sweeps."""

import time

import pytest
from in_process import run_session
from toy_problems import (
    SlowProblem,
    TroubledProblem,
    UnequalProblem,
    keep_the_interpreter,
    set_the_clock_back,
    sleep_for_ever,
)
from toy_sweep import by_value, scores, session, toy_driver, undisturbed
from toys import ToyProblem

from tune.space import Budget
from tune.store.lease import Lease, holder
from tune.store.ledger import Ledger

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return undisturbed(tmp_path_factory.mktemp("plain"))


@pytest.fixture(autouse=True)
def travelling(ray_up):
    with by_value():
        yield


def of(expected, state):
    """The expected scores of the configurations that a sweep has tried."""
    return {cell: epochs for cell, epochs in expected.items() if cell[0] in state.configs}


def test_a_trial_that_hangs_is_ended_and_tried_again_while_slow_and_waiting_ones_live(tmp_path, expected):
    problem = UnequalProblem(pause=0.3, marks=str(tmp_path), troubles=(sleep_for_ever, keep_the_interpreter))
    d = toy_driver(tmp_path, problem, study={"hang_seconds": 6.0}, budget=Budget(trials=2))
    slow, waited = "clo-v2-0.001", []

    def wait():
        if not waited and any(config == slow for config, *_ in d.state.epochs):
            waited.append(time.sleep(5))  # Ray's loop stands still, and with it whatever asks for epochs

    assert session(d, beat=wait) == "finished"
    assert waited
    ((config, failures),) = d.state.failures.items()
    assert config == "clo-v2-0.01"
    assert [f["reason"] for f in failures] == ["hang", "hang"]
    stacks = {f"{config}-{attempt:04d}-0001.txt" for attempt in (1, 2)}
    assert {path.name for path in (tmp_path / "hung").iterdir()} == stacks
    for attempt, trouble in ((1, "sleep_for_ever"), (2, "keep_the_interpreter")):
        path = tmp_path / "hung" / f"{config}-{attempt:04d}-0001.txt"
        stack = path.read_text()
        assert trouble in stack
        assert "in train_epochs" in stack
        assert str(path) in failures[attempt - 1]["message"]
    assert {c: len(attempts) for c, attempts in d.state.attempts.items()} == {config: 3, slow: 1}
    assert scores(d.state) == of(expected, d.state)


def test_a_sweep_that_is_asked_to_stop_waits_for_an_epoch_that_takes_longer_than_ray_would(
    tmp_path, expected, monkeypatch
):
    """Ray gives what runs ten seconds; here two."""
    from ray.tune.execution.tune_controller import TuneController

    made = TuneController.__init__

    def impatient(self, *args, **options):
        made(self, *args, **options)
        assert self._actor_force_cleanup_timeout == 10
        self._actor_force_cleanup_timeout = 2

    monkeypatch.setattr(TuneController, "__init__", impatient)
    stop = tmp_path / "STOP"
    d = toy_driver(tmp_path, SlowProblem(pause=1.0), study={"hang_seconds": 600.0}, stop_requested=stop.exists)

    def stop_early():
        if not began and any((tmp_path / "hung").glob("*")):  # its watchdog is up: it trains
            stop.touch()
            began.append(time.monotonic())

    began = []
    assert session(d, concurrent=1, beat=stop_early) == "stopped"
    assert time.monotonic() - began[0] > 2 + 1
    assert d.state.fold_epochs == 1
    assert d.state.end["note"] == "stopped on request"


def test_a_checkpoint_that_was_altered_while_the_sweep_was_stopped_costs_an_epoch(tmp_path):
    training = {"max_epochs": 6, "patience": 6}
    d = toy_driver(tmp_path, ToyProblem(), study={"training": training}, budget=Budget(fold_epochs=2))
    assert run_session(d.study, d, beat=lambda: None) == "stopped"
    newest = sorted(tmp_path.glob("checkpoints/*/*/epoch-*"))[-1]
    data = bytearray((newest / "state.safetensors").read_bytes())
    data[-7] ^= 1
    (newest / "state.safetensors").write_bytes(data)
    later = toy_driver(tmp_path, ToyProblem(), 2, {"training": training}, budget=Budget(trials=1))
    done = later.state.fold_epochs
    assert run_session(later.study, later, beat=lambda: None) == "finished"
    assert scores(later.state) == of(undisturbed(tmp_path / "plain", **training), later.state)
    # It was really trained again: no epoch is recorded twice, but the new attempt wrote a checkpoint of the damaged one.
    (config,) = later.state.configs
    repeated = [r for r in later.ledger.records_of(config, "0002-0002") if r["kind"] == "checkpoint"]
    assert len(repeated) == 1
    assert later.state.fold_epochs == 12 > done


def test_clocks_that_are_set_back_change_nothing(tmp_path, expected, monkeypatch):
    problem = TroubledProblem(marks=str(tmp_path), troubles=(set_the_clock_back,))
    d = toy_driver(tmp_path, problem, budget=Budget(hours=1.0))
    lease = Lease.take(tmp_path)
    d.records.may_decide = lease.check
    real, back = time.time, []

    def set_back():
        if d.state.fold_epochs >= 4 and not back:
            back.append(True)
            monkeypatch.setattr(time, "time", lambda: real() - 3600)

    try:
        assert session(d, beat=set_back) == "finished"
        assert back
        assert (tmp_path / "set_the_clock_back").exists()
        assert d.stopping.hours() < 0.5
        assert holder(tmp_path).alive
    finally:
        lease.release()
    state = Ledger(tmp_path / "ledger").read()
    assert scores(state) == scores(d.state) == expected
    assert 0 <= state.elapsed < 1800
    order = [
        (r["kind"], r["config"], r.get("epoch"))
        for r in d.ledger.in_order()
        if r["kind"] in ("epoch", "grant", "complete")
    ]
    for config in state.configs:
        mine = [(kind, epoch) for kind, c, epoch in order if c == config]
        assert mine[0][0] == "grant"
        assert [epoch for kind, epoch in mine if kind == "epoch"] == [0, 1, 0, 1]
