"""What MLflow holds is read back, compared with the ledger value by value, and mended."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow_app import MlflowApp
from mlflow_server import contents
from proxy import Fault, proxy
from test_tracking import CLO, EPOCHS, Sweep, epoch, whole_sweep

from tune.tracking import server
from tune.tracking.audit import missing
from tune.tracking.events import CellEnded, CellStarted, ConfigEnded, Epoch, SavedViews, TrackingEvent, View
from tune.tracking.expected import in_parts
from tune.tracking.rebuild import with_newest_results, write_missing

HTML = b"<html><h1>400 Bad Request</h1></html>"
LIES = {
    "400 of MLflow": Fault(400, json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": "no"}).encode()),
    "400 HTML": Fault(400, HTML),
    "200 empty": Fault(200, b"{}"),
}
SLOW_LIES = ("400 of MLflow", "400 HTML")


def timed_sweep() -> list[TrackingEvent]:
    """Every event at a time of its own, as from a ledger."""
    start = 1_700_000_000_000
    return [e if e.time_ms else dataclasses.replace(e, time_ms=start + n) for n, e in enumerate(whole_sweep())]


def mended(sweep: Sweep, events: list[TrackingEvent]) -> tuple[int, list[str]]:
    """How many runs were mended, and what is left."""
    tracker = sweep.tracker()
    tracker.check()
    count, left = write_missing(tracker, events, lambda: None)
    return count, [str(one) for one in left]


def sorted_contents(database: Any, sweep: Sweep) -> dict[str, Any]:
    """Without the sweep's own name, and a metric's points by step."""
    found = contents(database, sweep.name)
    for run in found.values():
        run["metrics"] = {name: sorted(points) for name, points in run["metrics"].items()}
    return json.loads(json.dumps(found).replace(sweep.name, "NAME"))


def points_of(found: dict[str, Any]) -> int:
    """How many values of metrics all runs hold."""
    return sum(len(points) for run in found.values() for points in run["metrics"].values())


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory, new_database: Callable[[Path], str]) -> Path:
    return Path(new_database(tmp_path_factory.mktemp("audit")).removeprefix("sqlite:///"))


@pytest.fixture(scope="module")
def logged(database: Any) -> Iterator[tuple[Sweep, sqlite3.Connection]]:
    """A sweep that was logged to the database, and a copy of the database as it was then."""
    sweep = Sweep(f"sqlite:///{database}")
    sweep.send(timed_sweep())
    with contextlib.closing(sqlite3.connect(":memory:")) as copy:
        with contextlib.closing(sqlite3.connect(database)) as source:
            source.backup(copy)
        yield sweep, copy


@pytest.fixture(scope="module")
def whole(database: Any, logged: tuple[Sweep, sqlite3.Connection]) -> dict[str, Any]:
    """What a database holds of a sweep that nothing happened to."""
    return sorted_contents(database, logged[0])


@pytest.fixture
def sent(database: Any, whole: dict[str, Any], logged: tuple[Sweep, sqlite3.Connection]) -> Sweep:
    """That sweep, in a database that is again as it was when the sweep had been logged."""
    sweep, copy = logged
    with contextlib.closing(sqlite3.connect(database)) as target:
        copy.backup(target)
    return sweep


FOLD, CONFIG, SUMMARY = "CLO-v2 00 s0 f1", CLO, "Summary · CLO-v2 minus BLO"
DAMAGES = {
    "a point in the middle": ("DELETE FROM metrics WHERE run_uuid = :fold AND step = 1 AND key = 'score/exit_02'", "epoch 1"),
    "an epoch in the middle": ("DELETE FROM metrics WHERE run_uuid = :fold AND step = 1", "at epoch 1"),
    "another value of an epoch": (
        "UPDATE metrics SET value = 0.75 WHERE run_uuid = :fold AND step = 0 AND key = 'score/mean'", "other values of score/mean",
    ),
    "a curve of another version": (
        "UPDATE metrics SET value = value + 1 WHERE run_uuid = :config AND key LIKE 'curve/%'",
        "other values of curve/",
    ),
    "results": ("DELETE FROM metrics WHERE run_uuid = :config AND key LIKE 'depth/%'", "no values of depth/score"),
    "parameters": ("DELETE FROM params WHERE run_uuid = :config AND key IN ('lr_theta', 'variant')", "no parameter"),
    "another parameter": ("UPDATE params SET value = '7' WHERE run_uuid = :config AND key = 'lr_theta'", "parameter lr_theta"),
    "a tag": ("DELETE FROM tags WHERE run_uuid = :fold AND key IN ('approach', 'mlflow.parentRunId')", "tag approach"),
    "an end": ("UPDATE runs SET status = 'RUNNING', end_time = NULL WHERE run_uuid = :fold", "RUNNING, not FINISHED"),
    "a fold's run": ("UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = :fold", "the run is missing"),
    "a configuration's run": ("UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = :config", "the run is missing"),
    "a summary's depth": ("DELETE FROM metrics WHERE run_uuid = :summary AND step = 2", "no values of paired/diff"),
    "a second run": ("UPDATE tags SET value = '0' WHERE run_uuid = :fold AND key = 'fold'", "the run exists twice"),
}  # fmt: skip


#: Damages of different runs, which are met together.
TOGETHER = (
    ("a point in the middle", "results", "a summary's depth"),
    ("an epoch in the middle", "parameters"),
    ("another value of an epoch", "a curve of another version"),
    ("a tag", "another parameter"),
    ("an end",),
    ("a fold's run",),
    ("a configuration's run",),
    ("a second run",),
)


def test_every_damage_is_met() -> None:
    assert sorted(damage for damages in TOGETHER for damage in damages) == sorted(DAMAGES)


@pytest.mark.parametrize(
    "damages",
    [pytest.param(d, marks=() if d == TOGETHER[0] else pytest.mark.slow) for d in TOGETHER],
    ids=" and ".join,
)
def test_whatever_is_damaged_is_named_and_made_as_it_was(
    database: Any, whole: dict[str, Any], sent: Sweep, damages: tuple[str, ...]
) -> None:
    sweep, events = sent, timed_sweep()
    ids = {name: run.info.run_id for name, run in sweep.runs().items()}
    with contextlib.closing(sqlite3.connect(database)) as connection:
        for damage in damages:
            statement, _ = DAMAGES[damage]
            connection.execute(statement, {"fold": ids[FOLD], "config": ids[CONFIG], "summary": ids[SUMMARY]})
        # MLflow keeps each metric's last point apart, and makes it from the points only when it writes.
        connection.execute(
            "DELETE FROM latest_metrics WHERE NOT EXISTS (SELECT 1 FROM metrics m WHERE m.run_uuid = "
            "latest_metrics.run_uuid AND m.key = latest_metrics.key)"
        )
        connection.commit()
    seen = list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tune.tracking.rebuild.PASSES", 0)  # only compared
        seen = mended(sweep, events)[1]
    assert [damage for damage in damages if DAMAGES[damage][1] not in " | ".join(seen)] == []
    count, left = mended(sweep, events)
    assert (left, count >= 1) == ([], True)
    assert sorted_contents(database, sweep) == whole


def test_what_users_write_into_a_run_is_left_alone(sent: Sweep) -> None:
    from mlflow import MlflowClient

    sweep, events = sent, timed_sweep()
    client, runs = MlflowClient(sweep.uri), sweep.runs()
    client.set_tag(runs[sweep.name].info.run_id, "mlflow.note.content", "my own words")
    client.set_tag(runs[FOLD].info.run_id, "reviewed", "yes")
    client.log_metric(runs[FOLD].info.run_id, "my/metric", 3.0)
    assert mended(sweep, events) == (0, [])
    assert sweep.runs()[sweep.name].data.tags["mlflow.note.content"] == "my own words"
    assert sweep.runs()[FOLD].data.metrics["my/metric"] == 3.0


def test_what_is_expected_comes_in_parts_of_whole_configurations_that_join_to_all_of_it() -> None:
    events = timed_sweep()
    parts = list(in_parts(events, "sweep", "mrpc", most=1))
    assert [sorted({key[0] for key in part}) for part in parts] == [
        ["summary", "sweep"],
        ["config", "fold"],
        ["config", "fold"],
    ]
    joined = {key: run for part in parts for key, run in part.items()}
    assert joined == {key: run for part in in_parts(events, "sweep", "mrpc", most=100) for key, run in part.items()}
    assert {step for step in joined["fold", "clo", "0", "1"].metrics["score/mean"]} == set(range(EPOCHS))
    assert joined["fold", "clo", "0", "1"].parent == ("config", "clo")


@pytest.fixture(scope="module")
def served(mlflow_app: MlflowApp) -> Sweep:
    """A sweep that was logged to MLflow's application; not to be changed."""
    sweep = Sweep(mlflow_app.url)
    sweep.send(timed_sweep())
    return sweep


@pytest.mark.slow
@pytest.mark.parametrize("shut", ["get-history-bulk?", "get-history-bulk"])
def test_histories_are_read_from_servers_that_lack_an_interface_too(
    liar: Liar, mlflow_app: MlflowApp, served: Sweep, shut: str
) -> None:
    seen = Sweep(liar.uri)
    seen.name, seen.experiment = served.name, served.experiment
    liar.lying = lambda path, _: Fault(404, b"<html>Not Found</html>") if shut in path else None
    before = len(mlflow_app.requests())
    assert mended(seen, timed_sweep()) == (0, [])
    asked = {request for request in mlflow_app.requests()[before:] if "history" in request}
    assert asked == {"GET metrics/get-history-bulk-interval" if shut.endswith("?") else "GET metrics/get-history"}


@dataclasses.dataclass
class Liar:
    """A proxy of the server that lies to the requests that are picked, while it lies at all."""

    uri: str
    lying: Callable[[str, int], Fault | None] | None = None
    count: int = 0


@pytest.fixture
def liar(mlflow_app: MlflowApp, monkeypatch: pytest.MonkeyPatch) -> Iterator[Liar]:
    monkeypatch.setattr("tune.tracking.runs._SETTLE_SECONDS", 0.0)  # nothing that it swallows arrives later
    lock, it = threading.Lock(), Liar("")

    def fault(path: str) -> Fault | None:
        with lock:
            it.count += 1
            return it.lying(path, it.count) if it.lying else None

    with proxy(mlflow_app.url, fault) as uri:
        it.uri = uri
        yield it


#: Of what can't be MLflow's one kind: that each is told from MLflow's own answers is stated below.
@pytest.mark.slow
@pytest.mark.parametrize("lie", ["200 empty", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW_LIES)])
def test_a_server_whose_answers_were_others_holds_everything_after_it_was_read_back(
    liar: Liar, mlflow_app: MlflowApp, whole: dict[str, Any], lie: str
) -> None:
    sweep, events = Sweep(liar.uri), timed_sweep()
    sweep.tracker().check()
    tracker = sweep.tracker()
    # Every third would be the same one of the three requests that begin a run, and nothing would get past it.
    liar.lying = lambda path, count: LIES[lie] if count % 5 == 0 else None
    for event in events:
        tracker.put(event)
    tracker.close(20)
    liar.lying = None
    held = sorted_contents(mlflow_app.database, sweep)
    assert points_of(held) > 0
    # What can't be MLflow's is sent again; the others leave holes.
    assert (points_of(held) < points_of(whole)) is (lie in ("400 of MLflow", "200 empty"))
    assert mended(sweep, events)[1] == []
    assert sorted_contents(mlflow_app.database, sweep) == whole


@pytest.mark.slow
def test_while_it_keeps_lying_what_is_missing_is_named(liar: Liar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune.tracking.rebuild.PASSES", 2)
    monkeypatch.setattr("tune.tracking.audit.FIRST_PAUSE_SECONDS", 0.001)
    sweep, events = Sweep(liar.uri), timed_sweep()
    liar.lying = lambda path, _: LIES["400 of MLflow"] if "log-batch" in path else None
    tracker = sweep.tracker()
    for event in events:
        tracker.put(event)
    tracker.close(20)
    left = mended(sweep, events)[1]
    assert any(line.startswith(f"{FOLD}: no values of score/exit_01") and "at epoch 0, 1, 2" in line for line in left)
    assert any("no parameter" in line for line in left)


@pytest.mark.slow
def test_a_sweeps_end_states_that_reports_are_missing_which_every_answer_had_taken(
    liar: Liar, log_lines: Callable[[], list[str]]
) -> None:
    sweep, events = Sweep(liar.uri), timed_sweep()
    tracker, batches = sweep.tracker(), iter(range(100))
    liar.lying = lambda path, _: LIES["200 empty"] if "log-batch" in path and next(batches) == 2 else None
    for event in events:
        tracker.put(event)
        while tracker.waiting:
            threading.Event().wait(0.01)  # so that each report has a request of its own
    assert (tracker.close(20), tracker.rejected) == (0, 0)
    cells: dict[tuple[str, int, int], list[int]] = {}
    for event in events:
        if isinstance(event, Epoch):
            cells.setdefault((event.config_id, event.seed, event.fold), []).append(event.epoch)
    state: Any = SimpleNamespace(epochs=cells)
    before = liar.count
    assert missing(tracker, state) == 1
    assert liar.count - before == 2, "a search, and the epochs' numbers of up to 100 cells"
    assert "lacks 1 epochs" in log_lines()[-1]
    liar.lying = lambda *_: Fault()
    assert missing(tracker, state) == 0
    assert "can't be checked" in log_lines()[-1]


def answered(status: int, body: str) -> Any:
    """The answer to a request for a new run, or what it raises."""
    from mlflow.protos.service_pb2 import CreateRun

    response = SimpleNamespace(status_code=status, text=body, headers={})
    return server._answer(CreateRun, "/api/2.0/mlflow/runs/create", response)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, "{}"),
        (200, '{"run": {"info": {}}}'),
        (200, '{"run": 3}'),
        (200, "[]"),
        (200, "<html>"),
        (400, "<html>"),
        (400, "{}"),
        (403, "Permission denied"),
    ],
)
def test_an_answer_that_mlflow_does_not_give_is_no_reason_to_give_up(status: int, body: str) -> None:
    with pytest.raises(server.ForeignAnswer) as caught:
        answered(status, body)
    assert not server.is_permanent(caught.value)
    assert (caught.value.error_code == "PERMISSION_DENIED") == (status == 403)


def test_mlflows_own_answers_count() -> None:
    from mlflow.exceptions import MlflowException

    assert answered(200, '{"run": {"info": {"run_id": "7"}}}').run.info.run_id == "7"
    for status, code, permanent in ((400, "INVALID_PARAMETER_VALUE", True), (503, "TEMPORARILY_UNAVAILABLE", False)):
        with pytest.raises(MlflowException) as caught:
            answered(status, json.dumps({"error_code": code, "message": "no"}))
        assert server.is_permanent(caught.value) == permanent


def ended_twice() -> list[TrackingEvent]:
    """CLO-v2 is complete, then gets another fold and is complete again, with other results and a shorter curve."""
    *before, end = whole_sweep()
    first = next(e for e in before if isinstance(e, ConfigEnded) and e.config_id == "clo")
    again = dataclasses.replace(
        first, metrics={**first.metrics, "cv/score_mean": 0.75}, curve={"layers": [4.0, 1.0], "score": [0.9, 0.7]}
    )
    more = [CellStarted("clo", 0, 2), epoch("clo", 2, 0), CellEnded("clo", 0, 2, "finished"), again]
    start = 1_700_000_000_000
    return [e if e.time_ms else dataclasses.replace(e, time_ms=start + n) for n, e in enumerate([*before, *more, end])]


@pytest.mark.slow
def test_a_configuration_that_was_complete_twice_has_the_results_of_its_last_end_alone(database: Any) -> None:
    sweep, events = Sweep(f"sqlite:///{database}"), ended_twice()
    sweep.send(events)  # as its driver did
    left = mended(sweep, events)[1]  # two values at one step: each time the run is made anew, it has both
    assert any("other values of cv/score_mean" in line for line in left)
    assert CONFIG in sweep.runs(), "a run that cannot be made as expected is not left deleted"
    count, left = mended(sweep, with_newest_results(events))
    assert (count >= 1, left) == (True, [])
    assert {value for _, value in sweep.history(CONFIG, "cv/score_mean")} == {0.75}
    assert sorted(set(sweep.history(CONFIG, "curve/layers"))) == [(0, 4.0), (1, 1.0)]
    assert mended(sweep, with_newest_results(events)) == (0, [])


def test_saved_views_that_were_turned_down_as_if_for_good_are_read_back_too(sent: Sweep) -> None:
    sweep, views = sent, SavedViews((View("layers", "Layers", {"a": 1}),))
    events = [*timed_sweep(), dataclasses.replace(views, time_ms=1)]
    assert mended(sweep, events) == (1, [])
    assert mended(sweep, events) == (0, [])
