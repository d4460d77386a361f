"""A tracking server that asks for a password: who has none is refused before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from ahead import prepared
from encoders import save_backbone, write_task
from mlflow_server import MlflowServer, contents
from test_mlflow_folder import status
from test_sweep import space
from test_tracking import Sweep, whole_sweep

pytestmark = pytest.mark.slow
PASSWORD = "pa55word-of-the-administrator"


@prepared()
def guarded(folder: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(
        folder,
        MLFLOW_APP_NAME="basic-auth",
        MLFLOW_FLASK_SERVER_SECRET_KEY="for forms",
        MLFLOW_AUTH_ADMIN_PASSWORD=PASSWORD,
        MLFLOW_SERVER_ALLOWED_HOSTS="localhost:*,127.0.0.1:*,tracking.example.org:5000",
    )
    server.start()
    yield server
    server.kill()


def test_allowed_hosts_come_from_the_environment(guarded: MlflowServer) -> None:
    assert status(guarded.url, "tracking.example.org:5000") == 401, "asked for a password: the host is allowed"
    assert status(guarded.url, "10.0.0.5:5000") == 403


@pytest.mark.parametrize("wrong", [None, "wr0ng-passw0rd"], ids=["no password", "a wrong password"])
def test_without_credentials_a_sweep_is_refused_in_one_line_without_secrets(guarded, cli, tmp_path, monkeypatch, wrong):
    if wrong:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", wrong)
    save_backbone(tmp_path / "backbone", layers=3)
    (tmp_path / "task.json").write_text(json.dumps(write_task(tmp_path / "data", n=80)))
    ran = cli(
        "leebert-tune", "sweep", space(tmp_path / "s.yaml", tmp_path), "--name", "g",
        "--storage", tmp_path / "sweeps", "--tracking-uri", guarded.url,
    )  # fmt: skip
    assert ran.code == 1
    error = ran.err[ran.err.index("error: ") :]
    assert len(error.splitlines()) == 1
    assert error.startswith(f"error: MLflow can't be used at {guarded.url}")
    assert "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in error
    assert not any(secret in ran.err + ran.out for secret in ("wr0ng-passw0rd", PASSWORD))
    assert not (tmp_path / "sweeps").exists()


def test_with_credentials_everything_arrives(guarded, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    sweep = Sweep(guarded.url)
    sweep.tracker().check()
    sweep.send(whole_sweep())
    found = contents(guarded.database, sweep.name)
    assert len(found) == 7
    assert not any(run["status"] == "RUNNING" for run in found.values())
    assert PASSWORD not in guarded.log()
