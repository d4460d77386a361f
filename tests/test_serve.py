"""`leebert-tune serve` as a process: Ray Serve's replicas, faults while it runs, and its end."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import scaled_server
from ahead import ENVIRONMENT, prepared
from clusters import wait_until
from exported_toys import export_toy

from leebert.errors import ConfigError
from tune.serve.app import ServerOptions, _RayThread, possible_connections
from tune.serve.load import Surge, about_server, read_samples, run_load, save, summary
from tune.serve.replica import ReplicaOptions, replicas_needed
from tune.serve.source import exported_folder

RECORD = {"first": "w1 w2", "second": "w3"}


@dataclasses.dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    url: str
    line: str
    folder: Path

    def ask(self, body, headers=None, path="/invocations"):
        """Send a request; its status, headers and JSON."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"} | (headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, dict(answer.headers), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read().decode()

    def metric(self, start):
        """The value of the first metric whose line starts so; 0 if there is none."""
        lines = self.ask(None, path="/metrics")[2].splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start)), 0.0)

    def printed(self):
        """What it has written to its standard output since its first line or the last call."""
        os.set_blocking(self.process.stdout.fileno(), False)
        return self.process.stdout.read() or ""

    def replicas(self):
        """The processes of the replicas."""
        return [p for p in psutil.Process(self.process.pid).children(recursive=True) if "Replica" in p.name()]


@prepared()
def server(folder: Path):
    """A server of the toy model, with load control."""
    export_toy(folder / "toy")
    options = ["--p99-ms", "50", "--max-loss", "2", "--port", "0", "--max-replicas", "2"]
    command = [sys.executable, str(Path(scaled_server.__file__)), "serve", "toy", *options]
    environment = {**ENVIRONMENT, "RAY_AUTH_MODE": "disabled"}
    with (folder / "log").open("w") as log, subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, start_new_session=True
    ) as process:  # fmt: skip
        try:
            line = process.stdout.readline()
            assert line, (folder / "log").read_text()
            yield Server(process, line.split()[-1], line, folder)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            finally:
                process.kill()


@pytest.mark.slow
def test_it_says_what_it_serves_and_answers(server):
    assert "target p99 50 ms, floor 2 points" in server.line
    assert "2 operating points from 6.0 ms (90.0) to 4.0 ms (89.0)" in server.line
    status, _, body = server.ask({"dataframe_records": [RECORD, RECORD]})
    assert status == 200, body
    first, second = json.loads(body)["predictions"]
    assert first | {"row": 1} == second
    assert (first["criterion"], first["threshold"]) == ("entropy", 0.05)
    status, _, body = server.ask({"inputs": [RECORD], "params": {"criterion": "never"}})
    assert json.loads(body)["predictions"][0]["exit_layer"] == 3
    assert "threshold" not in json.loads(body)["predictions"][0]
    assert server.ask({"inputs": [RECORD], "params": {"criterion": "pcee", "speed_up": 2}})[0] == 422
    long = {"inputs": [{"first": "w1 " * 20, "second": "w2"}]}
    status, _, body = server.ask(long)
    assert (status, "the model takes at most 16 tokens" in body) == (422, True)
    assert server.ask(long | {"params": {"truncate": True}})[0] == 200
    assert server.ask(None, path="/healthz")[0] == 200
    wait_until(lambda: server.metric('leebert_texts_total{exit_layer="3"') >= 3, 10)


@pytest.mark.slow
def test_neither_the_server_nor_its_replicas_load_torch_or_transformers(server):
    processes = [psutil.Process(server.process.pid), *server.replicas()]
    assert len(processes) == 2
    for process in processes:
        files = " ".join(Path(f"/proc/{process.pid}/maps").read_text().split())
        assert "libtorch" not in files
        assert "onnxruntime" in files


@pytest.mark.slow
def test_a_load_is_driven_and_every_request_recorded(server, tmp_path):
    rows = [{"first": "w1 w2", "second": "w3", "label": 2}, {"first": "w4", "second": "w5 w6", "label": "green"}]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = read_samples(tmp_path / "texts.jsonl", about_server(server.url))
    assert [sample.label for sample in samples] == ["blue", "green"]
    surge = Surge(20, 5, before=0.5, during=1, after=0.5, ramp=0.1)
    done = run_load(server.url, samples, surge)
    assert 60 < len(done) < 240
    assert {row["status"] for row in done} == {200}
    assert {row["threshold"] for row in done} <= {0.05, 0.3}
    phases = summary(done, surge, 50)
    assert [phase["phase"] for phase in phases] == ["before", "surge", "after"]
    assert all(0 <= phase["accuracy"] <= 1 for phase in phases)
    save(done, tmp_path / "load.parquet")
    assert (tmp_path / "load.parquet").stat().st_size > 1000


@pytest.mark.slow
def test_thousands_of_connections_wait_without_harm(server):
    host, port = server.url.removeprefix("http://").split(":")
    held = []
    try:
        for _ in range(2000):
            held.append(socket.create_connection((host, int(port)), timeout=10))
        assert server.ask({"inputs": [RECORD]})[0] == 200
        assert server.metric("leebert_connections") > 1900
    finally:
        for one in held:
            one.close()
    wait_until(lambda: server.metric("leebert_connections") < 10, 20)


@pytest.mark.slow
def test_a_killed_replica_fails_its_requests_with_503_and_is_replaced(server):
    [replica] = server.replicas()
    many = {"inputs": [RECORD] * 900}
    killed = threading.Event()
    statuses = []

    def send():
        while not killed.is_set() or len(statuses) < 60:
            statuses.append(server.ask(many)[0])
            if statuses[-1] == 503:
                time.sleep(0.05)

    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(send) for _ in range(4)]
        time.sleep(0.3)
        os.kill(replica.pid, signal.SIGKILL)
        wait_until(lambda: 503 in statuses, 30)
        killed.set()
        for one in done:
            one.result(60)
    assert set(statuses) <= {200, 429, 503}
    wait_until(lambda: server.ask({"inputs": [RECORD]})[0] == 200, 60)
    assert [p.pid for p in server.replicas()] != [replica.pid]


@pytest.mark.slow
def test_a_replica_that_is_no_longer_needed_answers_what_it_holds(server):
    replicas = server.folder / scaled_server.FILE
    replicas.write_text("2")
    wait_until(lambda: server.metric("leebert_replicas") == 2, 60)
    down = threading.Event()

    def send(rows):
        statuses = []
        while not down.is_set():
            statuses.append(server.ask({"inputs": [RECORD] * rows})[0])
        return statuses

    with ThreadPoolExecutor(6) as pool:
        sent = [pool.submit(send, rows) for rows in (1, 1, 1, 20, 200, 200)]
        try:
            replicas.write_text("1")
            wait_until(lambda: server.metric("leebert_replicas") == 1, 60)
        finally:
            down.set()
        statuses = [status for one in sent for status in one.result(60)]
    assert set(statuses) == {200}
    assert len(server.replicas()) <= 2, "Ray Serve may still be ending the process"


@pytest.mark.slow
def test_ctrl_c_answers_what_is_held_ends_the_replicas_and_prints_nothing_of_ray(server):
    """The last test of this file: it ends the server."""
    replicas, logged = server.replicas(), (server.folder / "log").stat().st_size
    server.printed()  # Ray's line on the replica that was killed
    with ThreadPoolExecutor(4) as pool:
        held = [pool.submit(server.ask, {"inputs": [RECORD] * 800}) for _ in range(4)]
        time.sleep(0.15)
        os.killpg(server.process.pid, signal.SIGINT)  # as a terminal does
        statuses = [one.result(60)[0] for one in held]
    assert set(statuses) <= {200, 429, 503}
    assert 200 in statuses
    assert server.process.wait(60) == 128 + signal.SIGINT
    assert not server.printed()
    lines = (server.folder / "log").read_text()[logged:].splitlines()
    strange = [line for line in lines if not line[10:].startswith(("replica ", "SIGINT: no new requests"))]
    assert not strange
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in replicas)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing"], "no such folder"),
        (["."], "leebert export . --to onnx --int8 --out"),
        (["toy", "--p99-ms", "20", "--threshold", "0.1"], "--p99-ms and --threshold"),
        (["toy", "--p99-ms", "nan"], "p99 target nan"),
        (["toy", "--p99-ms", "20", "--max-loss", "101"], "max_loss 101"),
        (["toy", "--p99-ms", "20", "--criterion", "pcee"], "has no curve of it"),
        (["toy", "--threshold", "5"], "threshold"),
        (["toy", "--replicas", "2", "--max-replicas", "1"], "--max-replicas 1"),
        (["models:/toy@champion", "--address", "auto"], "with --address: its replicas may be on other machines"),
        (["toy", "--host", "192.0.2.1"], "can't listen on 192.0.2.1:8000"),
    ],
)
def test_bad_options_are_refused_before_ray_starts(words, message, tmp_path, monkeypatch, capsys):
    from typer.testing import CliRunner

    from leebert.errors import LeebertError
    from tune.cli import app

    export_toy(tmp_path / "toy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tune.serve.app._start_ray", lambda _: pytest.fail("Ray was started"))
    result = CliRunner().invoke(app, ["serve", *words])
    assert isinstance(result.exception, LeebertError), result.output
    assert message in str(result.exception)


@pytest.mark.parametrize(
    ("busy", "current", "expected"),
    [([], 2, 2), ([0.05], 1, 1), ([0.95], 1, 2), ([0.95, 0.95], 2, 4), ([0.1, 0.1, 0.1], 3, 1), ([1.0] * 4, 4, 4)],
)
def test_replicas_follow_the_share_of_time_in_which_their_models_run(busy, current, expected):
    context = SimpleNamespace(
        aggregated_metrics={"busy": dict(enumerate(busy))}, current_num_replicas=current,
        capacity_adjusted_min_replicas=1, capacity_adjusted_max_replicas=4,
    )  # fmt: skip
    assert replicas_needed(context)[0] == expected


def test_a_model_of_mlflow_is_downloaded_and_one_that_is_not_exported_refused(tmp_path, monkeypatch):
    downloads = []

    def download(artifact_uri, dst_path, tracking_uri, registry_uri):
        assert tracking_uri == registry_uri == "sqlite:///toy.db"
        model = Path(dst_path) / "model"
        (model / "data" / "saved").mkdir(parents=True)
        (model / "data" / "saved" / "config.json").write_text("{}")
        if artifact_uri == "models:/toy@champion":
            export_toy(model / "data" / "exported")
        downloads.append(model)
        return str(model)

    # MLflow itself is not imported: that takes seconds.
    exceptions = SimpleNamespace(MlflowException=type("MlflowException", (Exception,), {}))
    fake = SimpleNamespace(artifacts=SimpleNamespace(download_artifacts=download), exceptions=exceptions)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", exceptions)
    monkeypatch.chdir(tmp_path)
    with exported_folder("models:/toy@champion", "sqlite:///toy.db") as folder:
        assert (folder / "export.json").is_file()
    assert not folder.exists()
    with (
        pytest.raises(ConfigError, match="leebert export model/data/saved --to onnx --int8 --out exported"),
        exported_folder("models:/toy@plain", "sqlite:///toy.db"),
    ):
        pass
    assert len(downloads) == 2


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "connections"),
    [
        (1024, 20_000, 12_256, 12_000),
        (1024, 4096, 4096, 3840),
        (20_000, 20_000, None, 12_000),
        (1024, -1, 12_256, 12_000),
    ],
)
def test_the_limit_of_open_files_is_raised_for_connections_as_far_as_it_may(
    soft, hard, raised, connections, monkeypatch
):
    limits = []
    monkeypatch.setattr("resource.getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr("resource.setrlimit", lambda _, values: limits.append(values))
    assert possible_connections(12_000) == connections
    assert limits == ([] if raised is None else [(raised, hard)])


def test_servers_of_a_cluster_have_names_of_their_own(tmp_path):
    options = ServerOptions(tmp_path, address="auto")
    replica = ReplicaOptions(str(tmp_path), 1, None, None, options.limits, "127.0.0.1", 1, "token")
    first, second = (_RayThread(options, replica)._name for _ in range(2))
    assert first != second
    assert first.startswith("leebert-")


def test_an_altered_folder_is_refused(tmp_path):
    from leebert.errors import CheckpointError
    from tune.serve.command import ServeRequest, serve

    export_toy(tmp_path / "toy")
    with (tmp_path / "toy" / "segment-2.onnx").open("ab") as file:
        file.write(b"x")
    values = {f.name: None for f in dataclasses.fields(ServeRequest)}
    values |= {"model": str(tmp_path / "toy"), "threads": 1, "replicas": 1, "max_body_kb": 1, "max_texts": 1}
    with pytest.raises(CheckpointError, match="segment-2.onnx was altered"):
        serve(ServeRequest(**values))
