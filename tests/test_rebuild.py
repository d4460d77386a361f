"""`leebert-tune rebuild-mlflow`: a sweep that was stopped and resumed, and what other servers then hold of it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from encoders import save_backbone, write_task
from made_sweep import EXITS, FOLDS, made_sweep
from mlflow import MlflowClient
from mlflow_server import contents
from proxy import Fault, proxy
from recorded import crowded
from test_sweep import space

from leebert.tradeoff import layers_within, tradeoff
from tune.store.folder import SweepFolder
from tune.store.lease import Lease
from tune.store.ledger import Ledger
from tune.tracking.events import ConfigEnded, TrackingEvent
from tune.tracking.feed import replay
from tune.tracking.rebuild import rebuild as rebuild_mlflow
from tune.tracking.tracker import Tracker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rebuild(cli):
    """The command, on a sweep's folder and a server's address."""
    return lambda folder, uri, *more: cli("leebert-tune", "rebuild-mlflow", folder, "--tracking-uri", uri, *more)


@pytest.fixture(scope="module")
def swept(cli_without_ray, mlflow_server, tmp_path_factory):
    """A sweep that its budget stopped within a cell and that was resumed; the test session's server saw it all."""
    place = tmp_path_factory.mktemp("rebuild")
    save_backbone(place / "backbone", layers=3)
    (place / "task.json").write_text(json.dumps(write_task(place / "data", n=80)))
    where = ("--storage", place / "sweeps")
    ran = cli_without_ray(
        "leebert-tune", "sweep", space(place / "space.yaml", place), "--name", "rebuilt", *where,
        "--tracking-uri", mlflow_server.url, "--set", "budget.fold_epochs=1",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    again = cli_without_ray("leebert-tune", "resume", "rebuilt", *where, "--set", "budget.fold_epochs=null")
    assert again.code == 0, again.err
    return SweepFolder(place / "sweeps" / "rebuilt")


def test_a_new_database_holds_what_the_old_one_does_and_is_left_alone_by_a_second_call(
    swept, rebuild, mlflow_server, tmp_path
):
    database = tmp_path / "new.db"
    ran = rebuild(swept.path, f"sqlite:///{database}", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["reports"], ran.json["cells"], ran.json["unsent"], ran.json["rejected"]) == (8, 4, 0, 0)
    original = contents(mlflow_server.database, "rebuilt")
    assert Counter(run["tags"]["kind"] for run in original.values()) == {
        "sweep": 1, "config": 2, "fold": 4, "summary": 3,
    }  # fmt: skip
    assert {run["status"] for run in original.values()} == {"FINISHED"}
    assert Counter(run["tags"].get("attempt") for run in original.values())["2"] >= 1, (
        "the resumed sweep's attempts are known"
    )
    found = contents(database, "rebuilt")
    assert found.keys() == original.keys()
    for name, run in original.items():
        assert found[name] == run

    before = database.read_bytes()
    again = rebuild(swept.path, f"sqlite:///{database}")
    assert again.code == 0, again.err
    assert database.read_bytes() == before

    before = len(mlflow_server.requests())
    ran = rebuild(swept.path, mlflow_server.url, "--json")
    assert (ran.code, ran.json["mended"], ran.json["differences"]) == (0, 0, [])
    sent = Counter(mlflow_server.requests()[before:])
    assert sent == {
        "GET experiments/get-by-name": 1, "POST runs/search": 2, "GET experiments/get": 2,
        "GET metrics/get-history-bulk": len({m for run in found.values() for m in _of_parts(run)}),
    }, "nothing is written; what is there is read back, each metric once for all runs of a kind"  # fmt: skip


def _of_parts(run):
    """A run's metrics, with the part in which they are read back: summaries, or configurations and folds."""
    return {(name, run["tags"]["kind"] == "summary") for name in run["metrics"]}


def test_what_a_proxy_answered_in_the_servers_place_is_detected_and_mended_once_it_stops(
    swept, rebuild, mlflow_server, new_database, tmp_path
):
    answer = [None]
    copy = tmp_path / "lied"
    shutil.copytree(swept.path, copy)
    with proxy(mlflow_server.url, lambda path: answer[0] if "log-batch" in path else None) as url:
        answer[0] = Fault(200, b"{}")
        ran = rebuild(copy, url)
        assert ran.code == 1
        assert "MLflow still differs from the sweep's ledger in" in ran.err
        assert "no values of collapsed/exit_01" in ran.err or "no parameter" in ran.err
        assert "more\nCheck any proxy between this machine and the server" in ran.err
        answer[0] = None
        again = rebuild(copy, url, "--json")
    assert (again.code, again.json["differences"]) == (0, []), again.err
    assert again.json["mended"] >= 3
    assert rebuild(copy, new_database(tmp_path)).code == 0
    assert contents(mlflow_server.database, "lied") == contents(tmp_path / "mlflow.db", "lied")


@pytest.fixture
def fickle(mlflow_server):
    """A way to the server that answers 503 after so many requests; its address and the number that is left."""
    left = [12]

    def fault(path):
        left[0] -= 1
        return Fault(503) if left[0] < 0 else None

    with proxy(mlflow_server.url, fault) as url:
        yield url, left


def test_a_server_that_goes_away_in_the_middle_is_an_error_and_later_gets_only_what_it_lacks(
    swept, rebuild, mlflow_server, new_database, fickle, tmp_path, monkeypatch
):
    uri, left = fickle
    copy = tmp_path / "half"
    shutil.copytree(swept.path, copy)
    with monkeypatch.context() as impatient:  # only for the server that is away: one that is slow is given its time
        impatient.setattr("tune.tracking.rebuild.CLOSE_SECONDS", 1.0)
        ran = rebuild(copy, uri)
    assert ran.code == 1
    assert "events did not reach MLflow; run the same command again" in ran.err
    half = contents(mlflow_server.database, "half")
    assert 0 < len(half) < len(contents(mlflow_server.database, "rebuilt"))
    left[0] = 10_000
    again = rebuild(copy, uri)
    assert again.code == 0, again.err
    rebuild(copy, new_database(tmp_path))
    assert contents(mlflow_server.database, "half") == contents(tmp_path / "mlflow.db", "half")


def test_of_a_sweep_that_died_no_run_stays_running(swept, rebuild, new_database, tmp_path):
    copy, database = tmp_path / "died", new_database(tmp_path)
    shutil.copytree(swept.path, copy)
    segment = max((copy / "ledger" / "driver" / "0002").iterdir())
    lines = segment.read_bytes().splitlines(keepends=True)
    assert b'"kind":"end"' in lines[-1]
    assert b'"kind":"complete"' in lines[-2]
    segment.write_bytes(b"".join(lines[:-2]))
    ran = rebuild(copy, database)
    assert ran.code == 0, ran.err
    found = contents(tmp_path / "mlflow.db", "died")
    assert found["died"]["status"] == "KILLED"
    assert found["died"]["tags"]["mlflow.note.content"] == "its driver died"
    statuses = Counter((run["tags"]["kind"], run["status"]) for run in found.values())
    assert statuses["config", "KILLED"] == statuses["config", "FINISHED"] == 1
    assert not any(status == "RUNNING" for _, status in statuses)
    before = (tmp_path / "mlflow.db").read_bytes()
    assert rebuild(copy, database).code == 0
    assert (tmp_path / "mlflow.db").read_bytes() == before


def test_while_a_driver_is_at_work_it_is_refused(swept, rebuild, tmp_path):
    copy = tmp_path / "driven"
    shutil.copytree(swept.path, copy)
    lease = Lease.take(copy)
    try:
        ran = rebuild(copy, f"sqlite:///{tmp_path}/mlflow.db")
    finally:
        lease.release()
    assert ran.code == 1
    assert "sweep driven is driven by process" in ran.err
    assert not (tmp_path / "mlflow.db").exists()


def test_a_trials_clock_that_is_ahead_does_not_change_what_is_reported(swept, rebuild, new_database, tmp_path):
    database = new_database(tmp_path)
    for name, ahead in (("right", 0.0), ("ahead", 3600.0)):
        copy = tmp_path / name
        shutil.copytree(swept.path, copy)
        _shift(copy, ahead)
        assert rebuild(copy, database).code == 0
    right, ahead = (contents(tmp_path / "mlflow.db", name) for name in ("right", "ahead"))
    right["ahead"] = right.pop("right")
    assert {name: run["status"] for name, run in ahead.items()} == {name: run["status"] for name, run in right.items()}
    for name, run in right.items():
        # The last value of each step: whether an epoch came before the first session's end, no clock can tell any more.
        last = [
            {metric: {p[0]: p[1] for p in points} for metric, points in r["metrics"].items()}
            for r in (run, ahead[name])
        ]
        assert last[0] == last[1]


def _shift(folder: Path, seconds: float) -> None:
    """Every trial wrote its records by a clock that was so far ahead of the driver's."""
    from tune.store.ledger import encode

    ledger = Ledger(folder / "ledger")
    for config, attempts in ledger.read().attempts.items():
        for attempt in attempts.values():
            records = list(ledger.records_of(config, attempt))
            if not records:
                continue  # stopped before its first epoch
            for path in (folder / "ledger" / config / attempt).glob("*.jsonl"):
                path.unlink()
            text = b"".join(encode({**r, "time": r["time"] + seconds}) for r in records)
            (folder / "ledger" / config / attempt / "00000000.jsonl").write_bytes(text)


def test_runs_whose_layers_came_from_evenly_spaced_thresholds_get_those_of_the_curve(new_database, tmp_path):
    """A sweep's ledger and its runs as they were before there was one curve; the logits are there."""
    uri = new_database(tmp_path)
    folder = made_sweep(
        tmp_path / "old", uri, held_out=lambda index, fold: crowded(6 + 0.1 * fold), curves=False, configs=2
    )
    before = Tracker(uri, "leebert-mrpc", "old", "mrpc")
    listener = SimpleNamespace(put=lambda event: before.put(_as_it_was(event)))
    replay(folder.ledger, listener)
    assert before.close(60) == 0
    done = rebuild_mlflow(folder, tracking_uri=uri)
    assert (done["unsent"], done["differences"]) == (0, [])
    expected = layers_within([tradeoff(crowded(6 + 0.1 * fold), metric="accuracy") for fold in range(FOLDS)])
    client = MlflowClient(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "leebert-mrpc"]
    runs = client.search_runs([experiment.experiment_id])
    (run,) = [r for r in runs if r.data.tags["kind"] == "config" and r.data.tags["outcome"] == "complete"]
    assert run.data.metrics["cv/layers"] == pytest.approx(expected, abs=0.005)
    assert client.get_metric_history(run.info.run_id, "curve/layers")[-1].value == EXITS
    cells = [r for r in runs if r.data.tags["kind"] == "fold" and r.data.tags["config"] == run.data.tags["config"]]
    assert {r.data.tags["mlflow.parentRunId"] for r in cells} == {run.info.run_id}


def _as_it_was(event: TrackingEvent) -> TrackingEvent:
    """A configuration's end had layers read from 20 thresholds, and no curve."""
    if not isinstance(event, ConfigEnded):
        return event
    return dataclasses.replace(event, metrics={**event.metrics, "cv/layers": 5.25}, curve={})
