"""MLflow as a user sees it, at a real server and at a plain SQLite file: runs, outages, secrets, number of requests."""

from __future__ import annotations

import contextlib
import http.server
import math
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import quick
from mlflow_server import contents
from proxy import Fault, proxy

from leebert.errors import LeaseError, TrackingError
from tune.running.first_checks import check_addresses
from tune.store.ledger import SweepState
from tune.tracking import feed, names, runs, server
from tune.tracking import tracker as tracking
from tune.tracking.events import (
    CellEnded,
    CellStarted,
    ConfigEnded,
    ConfigStarted,
    Epoch,
    Summary,
    SweepEnded,
    SweepStarted,
    TrackingEvent,
)
from tune.tracking.server import experiment_url, redact, resolve_uri
from tune.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow_app import MlflowApp
    from mlflow_server import MlflowServer

EXITS, EPOCHS = 4, 3
VALUES = {
    "clo": {"algorithm": "clo-v2", "lr_theta": 1e-4, "lr_omega": 1e-3, "cycle_length": 4, "batch_size": 16},
    "blo": {"algorithm": "blo", "lr_theta": 1e-5, "lr_omega": 1e-3, "batch_size": 32},
}
#: The names of their runs.
CLO, BLO = "CLO-v2 00 · λ1=0.0001 λ2=0.001 C=4 batch=16", "BLO 01 · λ1=1e-05 λ2=0.001 batch=32"


def epoch(config: str, fold: int, number: int, score: float = 0.5) -> Epoch:
    metrics = {names.exit_metric(q, e): score for q in ("score", "loss", "omega_ce") for e in range(1, EXITS + 1)}
    metrics |= {
        "score/mean": score + number / 100,
        "train/loss_theta": 1.0,
        "theta_updates": 10 * number,
        "seconds": 1.5,
    }
    return Epoch(config, 0, fold, number, lambda: metrics, time_ms=1_700_000_000_000 + 1000 * number)


def whole_sweep() -> list[TrackingEvent]:
    """CLO-v2 on two folds to the end; BLO pruned in its first."""
    events: list[TrackingEvent] = [SweepStarted({"folds": 2, "seeds": [0]}, "what it is for")]
    events.append(ConfigStarted("clo", 0, VALUES["clo"]))
    for fold in range(2):
        events.append(CellStarted("clo", 0, fold))
        events += [epoch("clo", fold, number) for number in range(EPOCHS)]
        events.append(CellEnded("clo", 0, fold, "finished"))
    depth = {"score": [0.5, 0.6, 0.7, 0.8], "omega_ce": [0.1, 0.2, 0.3, 0.4]}
    curve = {"layers": [4.0, 2.0, 1.0], "score": [0.8, 0.7, 0.5]}
    scores = {"cv/score_mean": 0.5123456789, "cv/score_std": 0.0, "cv/score_pct": 51.23, "cv/cells": 2}
    events.append(ConfigEnded("clo", "complete", scores, depth, curve))
    events += [ConfigStarted("blo", 1, VALUES["blo"]), CellStarted("blo", 0, 0), epoch("blo", 0, 0)]
    events += [CellEnded("blo", 0, 0, "pruned"), ConfigEnded("blo", "pruned", {"cv/cells": 0})]
    events.append(Summary("CLO-v2 minus BLO", {"paired/pairs": 2}, {"paired/diff": [0.1, 0.1, None, 0.2]}))
    events.append(SweepEnded("finished", "how it went"))
    return events


class Sweep:
    """A sweep of its own name at some address."""

    def __init__(self, uri: str) -> None:
        self.uri, self.name = uri, f"sweep-{uuid.uuid4().hex[:8]}"
        self.experiment = f"experiment of {self.name}"

    def tracker(self) -> Tracker:
        return Tracker(self.uri, self.experiment, self.name, "mrpc", longest_pause=0.05)

    def send(self, events: list[TrackingEvent]) -> Tracker:
        tracker = self.tracker()
        for event in events:
            tracker.put(event)
        assert tracker.close(240) == 0
        assert tracker.rejected == 0
        return tracker

    def runs(self) -> dict[str, Any]:
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        experiment = client.get_experiment_by_name(self.experiment)
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        by_name = {run.info.run_name: run for run in runs}
        assert len(by_name) == len(runs), "run names are unique within a sweep"
        return by_name

    def history(self, run: str, metric: str) -> list[tuple[int, float]]:
        from mlflow import MlflowClient

        points = MlflowClient(self.uri).get_metric_history(self.runs()[run].info.run_id, metric)
        return [(point.step, point.value) for point in points]


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory, new_database: Callable[[Path], str]) -> str:
    return new_database(tmp_path_factory.mktemp("database"))


@pytest.fixture(params=["app", "sqlite"])
def sweep(request: pytest.FixtureRequest) -> Sweep:
    """A sweep at MLflow's application, at a database, or (`server`) at a server in a process of its own."""
    if request.param == "sqlite":
        return Sweep(request.getfixturevalue("database"))
    return Sweep(request.getfixturevalue(f"mlflow_{request.param}").url)


@pytest.fixture
def served(mlflow_server: MlflowServer) -> Iterator[Sweep]:
    yield Sweep(mlflow_server.url)
    if not mlflow_server.healthy():
        mlflow_server.kill()
        mlflow_server.start()


@pytest.fixture
def at_app(mlflow_app: MlflowApp) -> Iterator[Sweep]:
    yield Sweep(mlflow_app.url)
    mlflow_app.resume()


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("sweep", ["server", "sqlite"], indirect=True)
def test_what_a_user_sees_of_a_sweep(sweep: Sweep) -> None:
    sweep.send(whole_sweep())
    runs = sweep.runs()
    clo, blo = "CLO-v2 00", "BLO 01"
    assert {name: run.info.status for name, run in runs.items()} == {
        sweep.name: "FINISHED",
        CLO: "FINISHED",
        f"{clo} s0 f0": "FINISHED",
        f"{clo} s0 f1": "FINISHED",
        BLO: "KILLED",
        f"{blo} s0 f0": "KILLED",
        "Summary · CLO-v2 minus BLO": "FINISHED",
    }
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    assert parents[f"{clo} s0 f1"] == runs[CLO].info.run_id
    assert parents[CLO] == parents["Summary · CLO-v2 minus BLO"] == runs[sweep.name].info.run_id

    fold = runs[f"{clo} s0 f1"].data
    wanted = {"sweep": sweep.name, "task": "mrpc", "kind": "fold", "algorithm": "clo-v2", "approach": "CLO-v2"}
    wanted |= {"config": "clo", "seed": "0", "fold": "1", "attempt": "1", "mlflow.runColor": "#2272b4"}
    assert wanted.items() <= fold.tags.items()
    assert sweep.history(f"{clo} s0 f1", "score/mean") == [(0, 0.5), (1, 0.51), (2, 0.52)]

    config = runs[CLO].data
    assert config.params["log10_lr_theta"] == "-4.0"
    assert config.params["cycle_length"] == "4"
    assert config.metrics["cv/score_mean"] == 0.512346
    assert sweep.history(CLO, "depth/score") == [(1, 0.5), (2, 0.6), (3, 0.7), (4, 0.8)]
    assert sweep.history(CLO, "depth/layer") == [(n, n) for n in (1, 2, 3, 4)]
    assert sweep.history(CLO, "curve/layers") == [(0, 4), (1, 2), (2, 1)]
    assert runs[BLO].data.tags["outcome"] == "pruned"
    assert runs[sweep.name].data.tags["mlflow.note.content"] == "how it went"
    assert sweep.history("Summary · CLO-v2 minus BLO", "paired/diff") == [(1, 0.1), (2, 0.1), (4, 0.2)]


def test_every_name_is_on_the_list(sweep: Sweep) -> None:
    sweep.send(whole_sweep())
    for run in sweep.runs().values():
        kind = run.data.tags["kind"]
        found = [names.find("metric", name) for name in run.data.metrics]
        found += [names.find("tag", name) for name in run.data.tags if name not in ("mlflow.runName", "mlflow.user")]
        assert all(line is not None and kind in line.runs for line in found)


@pytest.mark.slow
def test_a_second_tracker_recognises_everything_and_writes_nothing(sweep: Sweep) -> None:
    sweep.send(whole_sweep())
    before = {name: (run.info.run_id, run.data.to_dictionary()) for name, run in sweep.runs().items()}
    sweep.send(whole_sweep())
    assert {name: (run.info.run_id, run.data.to_dictionary()) for name, run in sweep.runs().items()} == before
    assert len(sweep.history("CLO-v2 00 s0 f0", "score/mean")) == EPOCHS


@pytest.mark.parametrize("cut", quick.only([6], [3, 6, 14]))
def test_a_sweep_whose_driver_died_resumes_in_the_same_runs(database: str, cut: int) -> None:
    sweep, events = Sweep(database), whole_sweep()
    sweep.send(events[:cut])
    first = {name: run.info.run_id for name, run in sweep.runs().items()}
    sweep.send([*events[:cut], SweepEnded("stopped")])
    assert {run.info.status for run in sweep.runs().values()} <= {"FINISHED", "KILLED"}
    sweep.send([*events[:cut], SweepEnded("stopped"), *events[cut:]])
    runs = sweep.runs()
    assert {name: runs[name].info.run_id for name in first} == first
    assert Counter(run.info.status for run in runs.values()) == {"FINISHED": 5, "KILLED": 2}
    assert [step for step, _ in sweep.history("CLO-v2 00 s0 f0", "score/mean")] == [0, 1, 2]
    assert [step for step, _ in sweep.history("CLO-v2 00 s0 f1", "score/mean")] == [0, 1, 2]


def test_results_are_written_once_though_a_configuration_was_stopped_before(database: str) -> None:
    sweep, events = Sweep(database), whole_sweep()
    (end,) = [i for i, event in enumerate(events) if isinstance(event, ConfigEnded) and event.config_id == "clo"]
    clo = CLO
    early = ConfigEnded("clo", "stopped", {"cv/cells": 1, "cv/score_mean": 0.4}, {"score": [0.1] * EXITS})
    sweep.send([*events[: end - 2], early, SweepEnded("stopped")])
    assert sweep.runs()[clo].data.tags["outcome"] == "stopped"
    sweep.send([*events[: end - 2], early, SweepEnded("stopped"), *events[end - 2 :]])
    assert sweep.runs()[clo].data.tags["outcome"] == "complete"
    assert sweep.history(clo, "cv/score_mean") == [(0, 0.512346)]
    assert [step for step, _ in sweep.history(clo, "depth/score")] == [1, 2, 3, 4]


def test_nothing_is_sent_any_more_once_another_driver_has_taken_over(database: str) -> None:
    sweep, events, lost = Sweep(database), whole_sweep(), threading.Event()

    def may_send() -> None:
        if lost.is_set():
            raise LeaseError("taken over")

    tracker = sweep.tracker()
    tracker.fence(may_send)
    for event in events[:4]:
        tracker.put(event)
    wait_for(lambda: not tracker.waiting)
    before = {name: run.data.to_dictionary() for name, run in sweep.runs().items()}
    lost.set()
    for event in events[4:]:
        tracker.put(event)
    assert tracker.close(10) == len(events) - 4
    assert {name: run.data.to_dictionary() for name, run in sweep.runs().items()} == before


def test_a_restarted_cell_continues_its_run(database: str) -> None:
    sweep = Sweep(database)
    start: list[TrackingEvent] = [SweepStarted(), ConfigStarted("clo", 0, VALUES["clo"]), CellStarted("clo", 0, 0)]
    sweep.send([*start, epoch("clo", 0, 0), CellStarted("clo", 0, 0, 2), epoch("clo", 0, 0), epoch("clo", 0, 1)])
    assert [step for step, _ in sweep.history("CLO-v2 00 s0 f0", "score/mean")] == [0, 1]
    assert sweep.runs()["CLO-v2 00 s0 f0"].data.tags["attempt"] == "2"


def test_requests_stay_within_one_per_report_and_three_per_run(at_app: Sweep, mlflow_app: MlflowApp) -> None:
    tracker, events, before = at_app.tracker(), whole_sweep(), len(mlflow_app.requests())
    tracker.check()
    assert mlflow_app.requests()[before:] == ["GET experiments/get-by-name", "POST experiments/create"]

    before = len(mlflow_app.requests())
    for event in events:
        tracker.put(event)
    assert tracker.close(60) == 0
    sent = Counter(mlflow_app.requests()[before:])
    reports, runs = sum(isinstance(event, Epoch) for event in events), len(at_app.runs())
    assert sent["POST runs/search"] == 2, "it found nothing, and looked again"
    assert sent["POST runs/create"] == sent["POST runs/update"] == runs
    assert sent.total() - 2 <= reports + 3 * runs
    assert sent.total() == sum(sent[f"POST runs/{what}"] for what in ("search", "create", "update", "log-batch"))

    before = len(mlflow_app.requests())
    at_app.send(events)
    assert mlflow_app.requests()[before:] == ["GET experiments/get-by-name", "POST runs/search"]


@pytest.mark.slow
def test_reports_that_waited_share_requests_that_hold_whole_epochs(at_app: Sweep, mlflow_app: MlflowApp) -> None:
    def report(fold: int, number: int) -> Epoch:
        metrics = {f"train/term_{i:03d}": float(number) for i in range(120)}
        return Epoch("clo", 0, fold, number, lambda: metrics, time_ms=1_700_000_000_000 + number)

    events: list[TrackingEvent] = [SweepStarted(), ConfigStarted("clo", 0, VALUES["clo"])]
    events += [CellStarted("clo", 0, 0), CellStarted("clo", 0, 1)]
    events += [report(fold, number) for number in range(10) for fold in range(2)]
    tracker = at_app.tracker()
    tracker.check()
    mlflow_app.pause()
    for event in events:
        tracker.put(event)
    before = len(mlflow_app.requests())
    mlflow_app.resume()
    assert tracker.close(60) == 0
    logged = Counter(mlflow_app.requests()[before:])["POST runs/log-batch"]
    assert logged == 1 + 2 * 2, "parameters, and for either fold 10 epochs of which 6 fit into a request"
    for fold in range(2):
        run = contents(mlflow_app.database, at_app.name)[f"CLO-v2 00 s0 f{fold}"]
        assert len(run["metrics"]) == 120
        for points in run["metrics"].values():
            assert points == [(number, number, 1_700_000_000_000 + number) for number in range(10)]


@pytest.mark.slow
def test_a_lost_answer_leaves_no_second_run(
    mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch, log_lines: Callable[[], list[str]]
) -> None:
    """The request arrives after its sender has given it up."""
    monkeypatch.setattr(runs, "open_store", lambda uri, *_: server.open_store(uri, 5.0, 0.5))
    to_lose = [2]

    def fault(path: str) -> Fault | None:
        to_lose[0] -= "runs/create" in path
        return Fault(forwarded=True, late=0.9) if "runs/create" in path and to_lose[0] >= 0 else None

    with proxy(mlflow_server.url, fault) as uri:
        sweep = Sweep(uri)
        tracker = sweep.send(whole_sweep())
        assert len(log_lines()) >= 2, "answers were lost"
        assert len(sweep.runs()) == 7
        assert len(sweep.history("CLO-v2 00 s0 f0", "score/mean")) == EPOCHS
        assert tracker.waiting == 0


@pytest.mark.slow
def test_a_hanging_server(
    at_app: Sweep, mlflow_app: MlflowApp, monkeypatch: pytest.MonkeyPatch, log_lines: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr(runs, "open_store", lambda uri, *_: server.open_store(uri, 5.0, 0.2))
    tracker, events = at_app.tracker(), whole_sweep()
    tracker.put(events[0])
    wait_for(lambda: tracker.waiting == 0)
    mlflow_app.pause()
    try:
        for event in events[1:]:
            tracker.put(event)
        wait_for(log_lines)
    finally:
        mlflow_app.resume()
    assert tracker.close(60) == 0
    assert len(at_app.runs()) == 7


def test_closing_without_a_server_reports_how_many_events_wait(
    free_port: int, log_lines: Callable[[], list[str]]
) -> None:
    sweep = Sweep(f"http://127.0.0.1:{free_port}")
    tracker = sweep.tracker()
    for event in whole_sweep():
        tracker.put(event)
    started = time.monotonic()
    assert tracker.close(0.1) == tracker.waiting == len(whole_sweep())
    assert time.monotonic() - started < 5
    assert "events were not sent" in log_lines()[-1]


@pytest.mark.slow
def test_closing_waits_on_while_the_server_takes_something(
    database: str, monkeypatch: pytest.MonkeyPatch, log_lines: Callable[[], list[str]]
) -> None:
    apply = runs.RunWriter.apply

    def slowly(self: Any, *events: TrackingEvent) -> None:
        time.sleep(0.15 * len(events))
        apply(self, *events)

    monkeypatch.setattr(runs.RunWriter, "apply", slowly)
    monkeypatch.setattr(tracking, "PROGRESS_SECONDS", 0.5)
    sweep = Sweep(database)
    tracker = sweep.tracker()
    tracker.check()  # creates the tables
    for event in whole_sweep():
        tracker.put(event)
    started = time.monotonic()
    assert tracker.close(2.0) == 0
    assert time.monotonic() - started > 2.0, "else nothing was tested"
    assert len(sweep.runs()) == 7
    assert any("pending events" in line for line in log_lines())


def test_reports_that_wait_for_days_take_little_memory(free_port: int) -> None:
    def record(number: int) -> dict[str, Any]:
        exits = {"score": [number + e / 12 for e in range(12)], "loss": [number + e / 11 for e in range(12)]}
        where = {
            "config": "c",
            "attempt": 1,
            "seed": 0,
            "fold": 0,
            "epoch": number,
            "seq": number,
            "time": 1e9 + number,
        }
        numbers = {"score": 0.5, "theta_updates": number, "seconds": 1.5, "train_loss": 0.1}
        return {"kind": "epoch", **where, **numbers, "exits": exits, "weights": {}, "collapsed": []}

    count, state = 2000, SweepState()
    state.apply({"kind": "suggest", "config": "c", "index": 1, "values": {}})
    tracker = Sweep(f"http://127.0.0.1:{free_port}").tracker()
    records = [record(number) for number in range(count)]
    for one in records:
        state.apply(one)
    tracemalloc.start()
    for one in records:
        for event in feed.events(one, state):
            tracker.put(event)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert tracker.close(0) == tracker.waiting >= count
    # 110,000 reports then take less than 80 MB; with 40 named values each it would be 4 kB and more.
    assert size / count < 700


def test_a_deleted_run_does_not_hold_up_the_others(database: str, log_lines: Callable[[], list[str]]) -> None:
    from mlflow import MlflowClient

    sweep, events = Sweep(database), whole_sweep()
    tracker = sweep.tracker()
    for event in events[:4]:
        tracker.put(event)
    wait_for(lambda: tracker.waiting == 0)
    MlflowClient(database).delete_run(sweep.runs()["CLO-v2 00 s0 f0"].info.run_id)
    for event in events[4:]:
        tracker.put(event)
    assert tracker.close(30) == 0
    assert tracker.rejected == 3  # two reports and the end of the deleted run
    assert len(log_lines()) == 1
    assert sweep.runs()[sweep.name].info.status == "FINISHED"


def test_values_that_no_chart_can_show_are_counted(sweep: Sweep) -> None:
    bad = {"score/mean": 0.5, "loss/exit_01": math.nan, "loss/exit_02": math.inf, "seconds": 2}
    reports = [Epoch("clo", 0, 0, 0, lambda: bad), Epoch("clo", 0, 0, 1, lambda: {"score/mean": math.nan})]
    sweep.send([*whole_sweep()[:3], *reports, CellEnded("clo", 0, 0, "diverged")])
    run = sweep.runs()["CLO-v2 00 s0 f0"]
    assert run.data.metrics == {"score/mean": 0.5, "seconds": 2.0}
    assert run.data.tags["nonfinite"] == "3"
    assert run.info.status == "FAILED"


def test_a_summary_with_other_contents_takes_the_place_of_the_old_one(database: str) -> None:
    sweep = Sweep(database)
    sweep.send([SweepStarted(), Summary("CLO-v2", {"summary/configs": 3}, algorithm="clo-v2")])
    sweep.send([SweepStarted(), Summary("CLO-v2", {"summary/configs": 4}, algorithm="clo-v2")])
    run = sweep.runs()["Summary · CLO-v2"]
    assert run.data.metrics == {"summary/configs": 4.0}
    assert run.data.tags["approach"] == "CLO-v2"


@pytest.mark.slow
def test_many_values_are_split_below_the_limits_of_a_request(sweep: Sweep) -> None:
    many: dict[str, Any] = {f"option_{i}": i for i in range(150)}
    depth = {"score": [0.5] * 900, "omega_ce": [0.5] * 900}
    events = [SweepStarted(many), ConfigStarted("c", 0, {"algorithm": "mine"}), ConfigEnded("c", "complete", {}, depth)]
    sweep.send(events)
    assert len(sweep.runs()[sweep.name].data.params) == 150
    assert len(sweep.history("mine 00", "depth/omega_ce")) == 900


@pytest.fixture
def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def test_check_advises_what_to_do_when_nobody_answers(free_port: int) -> None:
    started = time.monotonic()
    with pytest.raises(TrackingError, match=r"can't be used at http://127\.0\.0\.1:\d+: .*serve\.sh"):
        Sweep(f"http://127.0.0.1:{free_port}").tracker().check()
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("code", [socket.EAI_NONAME, socket.EAI_AGAIN])
def test_only_a_host_that_does_not_exist_is_refused_at_once(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise socket.gaierror(code, "no address")

    monkeypatch.setattr(socket, "create_connection", fails)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    refused = pytest.raises(TrackingError, match="the host 'mlflow.lab' is unknown")
    with refused if code == socket.EAI_NONAME else contextlib.nullcontext():
        check_addresses("http://mlflow.lab:5000", None)


def test_check_is_quick_when_the_server_hangs(at_app: Sweep, mlflow_app: MlflowApp) -> None:
    mlflow_app.pause()
    try:
        with pytest.raises(TrackingError, match="can't be used"):
            at_app.tracker().check(0.2)
    finally:
        mlflow_app.resume()


@pytest.mark.parametrize(
    ("status", "body", "todo"),
    [
        (200, b"<html>hello</html>", "serve.sh"),
        (404, b"<html>hello</html>", "serve.sh"),
        (401, b"You are not authenticated.", "MLFLOW_TRACKING_PASSWORD"),
        (403, b"Invalid Host header - possible DNS rebinding attack detected", "allowed-hosts"),
    ],
)
def test_check_advises_what_to_do_about_each_refusal(status: int, body: bytes, todo: str) -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with pytest.raises(TrackingError, match=todo):
            Sweep(f"http://127.0.0.1:{server.server_port}").tracker().check()
        server.shutdown()


def test_a_server_without_a_free_connection_is_busy_and_what_it_refused_is_sent_again() -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    busy = "QueuePool limit of size 5 overflow 10 reached, connection timed out, timeout 30.00"
    assert not server.is_permanent(MlflowException(busy, BAD_REQUEST))
    assert server.is_permanent(MlflowException("(psycopg2.errors.StringDataRightTruncation)", BAD_REQUEST))


def test_many_sweeps_may_create_one_experiment_at_once(mlflow_app: MlflowApp) -> None:
    sweeps = [Sweep(mlflow_app.url) for _ in range(6)]
    trackers = [Tracker(s.uri, f"shared {sweeps[0].name}", s.name, "mrpc") for s in sweeps]
    threads = [threading.Thread(target=tracker.check) for tracker in trackers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tracker.url and tracker.url.split("/runs?")[0] for tracker in trackers}) == 1


@pytest.mark.slow
def test_many_processes_may_create_one_database_at_once(tmp_path: Path) -> None:
    # Forked after the imports, which take seconds each: so they begin together, too.
    code = """
import os, sys
import mlflow.store.db.utils, mlflow.store.tracking.sqlalchemy_store
from tune.tracking.tracker import Tracker
for _ in range(4):
    if os.fork() == 0:
        Tracker(sys.argv[1], "e", "s", "t").check()
        sys.stdout.flush()
        os._exit(0)
print([os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(4)])
"""
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/mlflow.db"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "[0, 0, 0, 0]", done.stderr


def test_an_experiment_that_was_deleted(database: str) -> None:
    from mlflow import MlflowClient

    sweep, client = Sweep(database), MlflowClient(database)
    client.delete_experiment(client.create_experiment(sweep.experiment))
    with pytest.raises(TrackingError, match=r"was deleted: restore it"):
        sweep.tracker().check()


def test_secrets_are_never_printed_or_stored(
    at_app: Sweep, mlflow_app: MlflowApp, monkeypatch: Any, free_port: int, log_lines: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken-in-environment")
    address = at_app.uri.removeprefix("http://")
    at_app.uri = f"http://user:pa55word@{address}"
    tracker = at_app.tracker()
    tracker.check()
    tracker.put(SweepStarted({"tracking_uri": at_app.uri}, f"see {at_app.uri} with t0ken-in-environment"))
    tracker.put(CellEnded("nobody's", 0, 0, "failed"))
    assert tracker.close(30) == 0
    assert tracker.rejected == 1
    away = Sweep(f"http://user:pa55word@127.0.0.1:{free_port}")
    with pytest.raises(TrackingError) as caught:
        away.tracker().check()
    lost = away.tracker()
    lost.put(SweepStarted())
    lost.close(0.1)
    texts = [
        str(caught.value),
        repr(caught.value.__cause__),
        *log_lines(),
        str(tracker.url),
        mlflow_app.log(),
    ]
    texts += [path.read_bytes().decode(errors="replace") for path in mlflow_app.database.parent.glob("mlflow.db*")]
    assert all(secret not in text for text in texts for secret in ("pa55word", "t0ken-in-environment"))
    assert at_app.name in "".join(texts), "the texts are those of this sweep"


def test_the_password_of_the_address_is_sent_to_the_server() -> None:
    got = list[str | None]()

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            got.append(self.headers["Authorization"])
            self.send_response(500)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with pytest.raises(TrackingError):
            Sweep(f"http://user:p%40ss@127.0.0.1:{server.server_port}").tracker().check()
        server.shutdown()
    assert got == ["Basic dXNlcjpwQHNz"]  # user:p@ss


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://host:5000/path", "http://host:5000/path"),
        ("https://user:pass@host/x", "https://host/x"),
        ("https://token@host", "https://host"),
        ("postgresql+psycopg2://me:a@b:c@db:5432/mlflow", "postgresql+psycopg2://db:5432/mlflow"),
        ("postgresql://db/mlflow?user=me&password=pass", "postgresql://db/mlflow?user=me&password=***"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("no answer from http://u:p@a and http://u:p@b", "no answer from http://a and http://b"),
    ],
)
def test_redact(uri: str, shown: str) -> None:
    assert redact(uri) == shown


def test_resolve_uri(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    assert resolve_uri() == "http://there"
    assert resolve_uri("http://here") == "http://here"


def test_experiment_url() -> None:
    url = experiment_url("http://user:pass@host:5000/", "7", "it's")
    assert url == (
        "http://host:5000/#/experiments/7/runs?searchFilter=tags.kind%20%3D%20%27config%27%20AND%20tags.sweep%20%3D%20"
        "%22it%27s%22&compareRunsMode=CHART&workflowType=machine_learning"
    )
    assert experiment_url("sqlite:///mlflow.db", "7") is None


def test_a_run_that_ended_with_layers_of_evenly_spaced_thresholds_gets_the_right_ones_once(database):
    sweep = Sweep(database)
    before = [ConfigStarted("clo", 0, VALUES["clo"]), ConfigEnded("clo", "complete", {"cv/layers": 5.0}, time_ms=1000)]
    begun = SweepStarted({"folds": 2}, "")
    sweep.send([begun, *before, SweepEnded("finished", time_ms=2000)])
    curve = {"layers": [1.0, 3.0, 6.0], "score": [0.5, 0.8, 0.8]}
    again = [before[0], ConfigEnded("clo", "complete", {"cv/layers": 3.0}, {}, curve, time_ms=1000)]
    for _ in range(2):
        sweep.send([begun, *again, SweepEnded("finished", time_ms=2000)])
        (name,) = [name for name in sweep.runs() if "clo" in name.lower() and name != sweep.name]
        run = sweep.runs()[name]
        assert run.data.metrics["cv/layers"] == 3.0
        assert run.info.status == "FINISHED"
        assert sweep.history(name, "curve/layers") == [(0, 1.0), (1, 3.0), (2, 6.0)]
        assert sorted(sweep.history(name, "cv/layers")) == [(0, 3.0), (0, 5.0)]
