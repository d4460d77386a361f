"""A real PostgreSQL for tests, in a folder of its own on a free port; skips where none is installed."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest


def program(name: str) -> str | None:
    """A program of PostgreSQL: Debian keeps those of the server off the path."""
    return shutil.which(name) or max(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), default=None)


def connected(uri: str, server: subprocess.Popen[bytes], seconds: float = 60.0) -> Any:
    """A connection to a server that is just starting."""
    import psycopg2

    deadline = time.monotonic() + seconds
    while True:
        try:
            return psycopg2.connect(uri)
        except psycopg2.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The address of a new, empty database."""
    initdb, server = program("initdb"), program("postgres")
    if initdb is None or server is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    # PostgreSQL refuses to run as root, and pytest's own folders are closed to other users.
    other = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.getuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        if other:
            shutil.chown(folder, "nobody", "nogroup")
        data, log = f"{folder}/data", f"{folder}/log"
        made = [*other, initdb, "-D", data, "-U", "mlflow", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(made, check=True, cwd=folder, stdout=subprocess.DEVNULL)
        started = [*other, server, "-D", data, "-p", str(port), "-k", folder, "-c", "listen_addresses=127.0.0.1"]
        with open(log, "w") as out:
            process = subprocess.Popen(started, cwd=folder, stdout=out, stderr=out)
        try:
            address = f"127.0.0.1:{port}"
            connection = connected(f"postgresql://mlflow@{address}/postgres", process)
            connection.autocommit = True  # no database is created within a transaction
            connection.cursor().execute("CREATE DATABASE mlflow")
            connection.close()
            yield f"postgresql+psycopg2://mlflow@{address}/mlflow"
        finally:
            process.send_signal(signal.SIGINT)  # does not wait for clients, as SIGTERM would
            process.wait(60)
