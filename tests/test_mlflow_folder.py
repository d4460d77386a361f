"""The folder mlflow/: the server script works."""

from __future__ import annotations

import os
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mlflow_server import MlflowServer

ROOT = Path(__file__).resolve().parent.parent
SERVE = ROOT / "mlflow" / "serve.sh"


def status(url: str, host: str) -> int:
    request = urllib.request.Request(url, headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_script_is_sound() -> None:
    subprocess.run(["bash", "-n", str(SERVE)], check=True)
    assert os.access(SERVE, os.X_OK)


@pytest.mark.slow
def test_the_server_answers_on_this_machine_and_to_no_other_name(mlflow_server: MlflowServer) -> None:
    assert status(mlflow_server.url, f"127.0.0.1:{mlflow_server.port}") == 200
    assert status(mlflow_server.url, "tracking.example.org") == 403
    assert mlflow_server.url in mlflow_server.log()


@pytest.mark.slow
def test_the_servers_data_stays_in_its_folder(mlflow_server: MlflowServer) -> None:
    assert (mlflow_server.folder / "mlflow.db").exists()
    assert not (ROOT / "mlflow.db").exists()
    assert not (ROOT / "mlruns").exists()


@pytest.mark.slow
def test_the_server_is_one_worker_without_job_runners(mlflow_server: MlflowServer) -> None:
    commands = mlflow_server.commands()
    assert {command[command.index("--workers") + 1] for command in commands} == {"1"}
    assert len(commands) == 2, "the command and its one worker"
    assert not any("sqlite" in part for command in commands for part in command), "anybody may read command lines"
