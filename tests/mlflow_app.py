"""MLflow's own server application on a socket of this process, and copies of an empty database of MLflow.

Requests, answers, routes and tables are MLflow's. What a process of its own adds (its command line, the hosts it answers, its
log, being killed) is for `mlflow_server`; starting that takes ten seconds of two processors, and every request four times as
long.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest


class MlflowApp:
    """MLflow's application at `url`, over an SQLite database; it can be paused."""

    def __init__(self, database: Path, patch: pytest.MonkeyPatch) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow's own dependencies warn, and warnings are errors in tests
            from mlflow.server import app, auth, handlers  # noqa: F401 (the first search imports `auth`)
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        # Not by the environment or `initialize_backend_stores`, which would also set this process' own tracking address.
        patch.setattr(handlers, "_tracking_store", SqlAlchemyStore(f"sqlite:///{database}", "mlflow-artifacts:/"))
        patch.setattr(handlers, "_artifact_repo", get_artifact_repository(str(database.parent / "artifacts")))
        patch.setattr(handlers, "_is_serving_proxied_artifacts", lambda: True)
        self.database = database
        self._answer = app.wsgi_app
        self._lines: list[str] = []
        self._running = threading.Event()
        self._running.set()
        self._server = make_server("127.0.0.1", 0, self._respond, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def _respond(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self._running.wait()
        # MLflow's own search uses what SQLAlchemy 2.1 calls deprecated.
        warnings.filterwarnings("ignore", message="The ``noload`` loader strategy", category=DeprecationWarning)
        self._lines.append(f"{environ['REQUEST_METHOD']} {environ['REQUEST_URI']}")
        answer: Iterable[bytes] = self._answer(environ, start_response)
        return answer

    def log(self) -> str:
        """The line of every request that was let through."""
        return "\n".join(self._lines)

    def requests(self) -> list[str]:
        """All requests to the tracking interface so far, such as ``POST runs/create``."""
        lines = re.findall(r"^(GET|POST) /(?:ajax-)?api/2\.0/mlflow/([\w/-]+)", self.log(), re.MULTILINE)
        return [f"{method} {path}" for method, path in lines]

    def pause(self) -> None:
        """Answer no request until :meth:`resume`, but accept connections: as if the network swallowed everything."""
        self._running.clear()

    def resume(self) -> None:
        self._running.set()

    def close(self) -> None:
        self.resume()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="session", autouse=True)
def files_of_databases(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The files of runs in a database without a server, which would be in the working directory."""
    os.environ.setdefault("_MLFLOW_SERVER_ARTIFACT_ROOT", str(tmp_path_factory.mktemp("artifacts")))


@pytest.fixture(scope="session")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """The address of a new database of MLflow in a folder: a copy of one that is created once (two seconds)."""
    import sqlalchemy

    from tune.tracking.server import open_store

    @sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
    def unsynced(connection: Any, _: object) -> None:
        """Not wait for the disk at every request: no test can see what only a loss of power would show."""
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    empty = tmp_path_factory.mktemp("empty") / "mlflow.db"
    open_store(f"sqlite:///{empty}").engine.dispose()

    def copy(folder: Path) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{shutil.copy(empty, folder / 'mlflow.db')}"

    return copy


@pytest.fixture(scope="session")
def mlflow_app(tmp_path_factory: pytest.TempPathFactory, new_database: Callable[[Path], str]) -> Iterator[MlflowApp]:
    database = Path(new_database(tmp_path_factory.mktemp("app")).removeprefix("sqlite:///"))
    with pytest.MonkeyPatch.context() as patch:
        app = MlflowApp(database, patch)
        yield app
        app.close()
