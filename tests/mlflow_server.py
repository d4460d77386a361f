"""A real MLflow server for tests: started by the repository's own mlflow/serve.sh, once per test session."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ahead import ENVIRONMENT

SERVE = Path(__file__).resolve().parent.parent / "mlflow" / "serve.sh"


class MlflowServer:
    """A server on a free port with its own folder; it can be killed and started again, or paused."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = {k: v for k, v in ENVIRONMENT.items() if not k.startswith("MLFLOW_")}
        self._environment |= {"MLFLOW_PORT": str(self.port), "PYTHON": sys.executable, **environment}
        self._log = self.folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = 300.0) -> None:
        self.launch()
        self.wait(seconds)

    def launch(self) -> None:
        """Start it without waiting until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(SERVE), str(self.folder)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    def wait(self, seconds: float = 300.0) -> None:
        """Wait until it answers."""
        assert self._process is not None
        deadline = time.monotonic() + seconds
        while not self.healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the MLflow server did not start:\n{self.log()[-3000:]}")
            time.sleep(0.1)

    @property
    def database(self) -> Path:
        return self.folder / "mlflow.db"

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def pause(self) -> None:
        """The server stops answering, but its port stays open: as if the network swallowed everything."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """As if its machine lost power."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def requests(self) -> list[str]:
        """All requests to the tracking interface so far, such as ``POST runs/create``."""
        lines = re.findall(r'"(GET|POST) /(?:ajax-)?api/2\.0/mlflow/([\w/-]+)', self.log())
        return [f"{method} {path}" for method, path in lines]

    def commands(self) -> list[list[str]]:
        """The command lines of the server's processes."""
        import psutil

        assert self._process is not None
        process = psutil.Process(self._process.pid)
        return [one.cmdline() for one in (process, *process.children(recursive=True))]

    def _signal(self, number: int) -> None:
        # The whole group: the server proper is a child of the command.
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)


def contents(database: Path, sweep: str) -> dict[str, dict[str, Any]]:
    """All that an SQLite database of MLflow holds of a sweep's runs, by their names, without MLflow's own identifiers.

    A metric's points stand in the order in which they were stored.
    """
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        rows = connection.execute(
            "SELECT run_uuid, name, status, start_time, end_time FROM runs JOIN tags USING (run_uuid) "
            "WHERE tags.key = 'sweep' AND tags.value = ? AND lifecycle_stage = 'active'",
            (sweep,),
        ).fetchall()
        names = {run: name for run, name, *_ in rows}
        assert len(set(names.values())) == len(names), "run names are unique within a sweep"
        found: dict[str, dict[str, Any]] = {}
        for run, name, status, start, end in rows:
            one = {"status": status, "start": start, "end": end}
            for table in ("tags", "params"):
                pairs = connection.execute(f"SELECT key, value FROM {table} WHERE run_uuid = ?", (run,))
                one[table] = {k: names.get(v, v) for k, v in pairs if k != "mlflow.user"}
            one["metrics"] = {}
            points = "SELECT key, step, value, timestamp FROM metrics WHERE run_uuid = ? ORDER BY rowid"
            for key, *point in connection.execute(points, (run,)):
                one["metrics"].setdefault(key, []).append(tuple(point))
            found[name] = one
    return found


@pytest.fixture(scope="session", autouse=True)
def launched_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The session's server, if a test needs one: it starts on another processor while other tests run."""
    if not any("mlflow_server" in getattr(item, "fixturenames", ()) for item in request.session.items):
        yield None
        return
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.launch()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def mlflow_server(launched_server: Any) -> MlflowServer:
    server: MlflowServer = launched_server
    server.wait()
    return server
