"""Real sweeps whose MLflow server is killed, started again, or hangs: training goes on, and every report arrives once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

import pytest
from encoders import save_backbone, write_task
from mlflow_server import contents
from proxy import Fault, proxy
from test_sweep import space

from tune.store.folder import SweepFolder

pytestmark = pytest.mark.slow
EPOCHS = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outages")
    save_backbone(folder / "backbone", layers=3)
    (folder / "task.json").write_text(json.dumps(write_task(folder / "data", n=80)))
    return folder


@pytest.fixture
def server(mlflow_server):
    yield mlflow_server
    mlflow_server.resume()
    if not mlflow_server.healthy():
        mlflow_server.kill()
        mlflow_server.start()


@pytest.fixture
def sweep_with(cli_without_ray, place, server):
    """A sweep of 24 epochs, while something else happens to its server."""

    def run(name: str, meanwhile: Callable[[SweepFolder], None], uri: str = server.url):
        training = {"batch_size": 8, "max_epochs": EPOCHS, "patience": EPOCHS, "precision": "fp32"}
        path = space(place / f"{name}.yaml", place, training=training)
        folder = SweepFolder(place / "sweeps" / name)
        thread = threading.Thread(target=meanwhile, args=(folder,))
        thread.start()
        where = ("--storage", place / "sweeps", "--tracking-uri", uri)
        ran = cli_without_ray("leebert-tune", "sweep", path, "--name", name, "--json", *where)
        ended = time.time()
        thread.join()
        return folder, ran, ended

    return run


def wait_for_epochs(folder: SweepFolder, least: int, seconds: float = 240.0) -> int:
    """Until the ledger holds so many, and how many it holds."""
    return _wait(lambda: folder.path.is_dir() and (n := folder.ledger.read().fold_epochs) >= least and n, seconds)


def wait_for_end(folder: SweepFolder, seconds: float = 240.0) -> None:
    _wait(lambda: folder.ledger.read().end, seconds)


def _wait(found, seconds):
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return value


def assert_complete(folder: SweepFolder, server) -> None:
    """Every run has ended, and MLflow has each epoch of the ledger once, stored in the order of steps."""
    state, found = folder.ledger.read(), contents(server.database, folder.name)
    assert {run["status"] for run in found.values()} == {"FINISHED"}
    folds = [run for run in found.values() if run["tags"]["kind"] == "fold"]
    assert {(r["tags"]["config"], int(r["tags"]["seed"]), int(r["tags"]["fold"])) for r in folds} == set(state.epochs)
    for run in folds:
        records = state.epochs[run["tags"]["config"], int(run["tags"]["seed"]), int(run["tags"]["fold"])]
        assert [(step, value) for step, value, _ in run["metrics"]["score/mean"]] == [
            (epoch, pytest.approx(records[epoch]["score"])) for epoch in range(EPOCHS)
        ]
        assert all([step for step, *_ in points] == list(range(EPOCHS)) for points in run["metrics"].values())


def test_a_server_that_is_killed_and_comes_back_costs_no_report(sweep_with, server):
    trained = []

    def outage(folder):
        before = wait_for_epochs(folder, 2)
        server.kill()
        trained.append(wait_for_epochs(folder, before + 4) - before)
        server.start()

    folder, ran, _ = sweep_with("killed", outage)
    assert ran.code == 0, ran.err
    assert trained[0] >= 4, "training went on without the server"
    assert "Training continues; its reports are sent later" in ran.err
    assert_complete(folder, server)


def test_a_server_that_hangs_does_not_hold_up_the_sweep(sweep_with, server):
    def outage(folder):
        wait_for_epochs(folder, 1)
        server.pause()
        try:
            wait_for_end(folder)  # in vain, if the driver waited for the server
        finally:
            server.resume()

    folder, ran, _ = sweep_with("hanging", outage)
    assert ran.code == 0, ran.err
    assert_complete(folder, server)


def test_a_server_that_stays_away_is_an_error_at_the_end_which_a_rebuild_mends(sweep_with, server, cli, monkeypatch):
    """No connection to it lasts once a cell was reported, until the sweep has ended."""
    monkeypatch.setattr("tune.running.sweep.CLOSE_SECONDS", 1.0)
    away = threading.Event()

    def outage(folder):
        _wait(lambda: any(r["tags"]["kind"] == "fold" for r in contents(server.database, "away").values()), 240)
        away.set()

    with proxy(server.url, lambda path: Fault() if away.is_set() else None) as uri:
        folder, ran, ended = sweep_with("away", outage, uri)
        assert ran.code == 1
        assert ran.json[0]["status"] == "finished"
        assert ran.json[0]["unsent"] > 0
        assert "events did not reach MLflow" in ran.err
        assert f"leebert-tune rebuild-mlflow {folder.path}" in ran.err
        state = folder.ledger.read()
        assert len(state.cells) == 4
        # The end waits once, for so long as the tracker is patient; the rest is for writing the results.
        assert ended - state.end["time"] < 1 + 20

        away.clear()
        assert "RUNNING" in {run["status"] for run in contents(server.database, "away").values()}
        again = cli("leebert-tune", "rebuild-mlflow", folder.path)
        assert again.code == 0, again.err
    assert_complete(folder, server)
