"""MLflow on a real PostgreSQL: as many writers at once as a busy group has sweeps, and nothing is lost."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from ahead import prepared
from mlflow_server import MlflowServer
from postgres_server import postgres
from test_tracking import EXITS

from tune.tracking import names
from tune.tracking.events import CellEnded, CellStarted, ConfigEnded, ConfigStarted, Epoch, SweepEnded, SweepStarted
from tune.tracking.tracker import Tracker

WRITERS, EPOCHS = 32, 2


@prepared()
def on_postgres(folder: Path) -> Iterator[tuple[MlflowServer, str]]:
    """A server, and the address of its database."""
    with postgres() as database:
        server = MlflowServer(folder, MLFLOW_BACKEND_STORE_URI=database)
        server.start()
        yield server, database
        server.kill()


@pytest.mark.slow
def test_32_sweeps_at_once_lose_nothing_and_store_nothing_twice(on_postgres: tuple[MlflowServer, str]) -> None:
    server, database = on_postgres
    together = threading.Barrier(WRITERS)
    trackers = [Tracker(server.url, "shared", f"sweep {i}", "mrpc") for i in range(WRITERS)]

    def write(number: int, tracker: Tracker) -> None:
        tracker.check(60)
        together.wait()
        tracker.put(SweepStarted())
        tracker.put(ConfigStarted("c", 0, {"algorithm": "clo-v2", "lr_theta": 1e-4}))
        tracker.put(CellStarted("c", 0, 0))
        for epoch in range(EPOCHS):
            score = number + epoch / 10
            metrics = {
                names.exit_metric(q, e): score for q in ("score", "loss", "omega_ce") for e in range(1, EXITS + 1)
            }
            tracker.put(Epoch("c", 0, 0, epoch, lambda metrics=metrics: metrics, time_ms=1_700_000_000_000 + epoch))
        tracker.put(CellEnded("c", 0, 0, "finished"))
        tracker.put(ConfigEnded("c", "complete", {"cv/score_mean": float(number)}))
        tracker.put(SweepEnded("finished"))

    threads = [threading.Thread(target=write, args=pair) for pair in enumerate(trackers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [tracker.close(240) for tracker in trackers] == [0] * WRITERS
    assert [tracker.rejected for tracker in trackers] == [0] * WRITERS

    stored = rows(database, "SELECT value, status FROM runs JOIN tags USING (run_uuid) WHERE key = 'sweep'")
    assert Counter(stored) == {(f"sweep {i}", "FINISHED"): 3 for i in range(WRITERS)}
    points = rows(
        database,
        "SELECT tags.value, metrics.key, step, metrics.value FROM metrics JOIN tags USING (run_uuid) "
        "WHERE tags.key = 'sweep' AND metrics.key LIKE '%exit%'",
    )
    kinds = [names.exit_metric(q, e) for q in ("score", "loss", "omega_ce") for e in range(1, EXITS + 1)]
    wanted = {(f"sweep {i}", k, e, i + e / 10) for i in range(WRITERS) for k in kinds for e in range(EPOCHS)}
    assert len(points) == len(wanted)
    assert set(points) == wanted
    assert not (Path(server.folder) / "mlflow.db").exists()


def rows(uri: str, query: str) -> list[tuple[object, ...]]:
    import psycopg2

    connection = psycopg2.connect(uri.replace("+psycopg2", ""))
    try:
        cursor = connection.cursor()
        cursor.execute(query)
        return cursor.fetchall()
    finally:
        connection.close()
