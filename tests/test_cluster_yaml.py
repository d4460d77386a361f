"""cluster.yaml against Ray's own validation, and against what that lets pass.

It can't be brought up here: there is no cloud. So each check is also shown to fail on a file that is wrong in its way.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROVIDER_KEYS = {
    "type",
    "region",
    "availability_zone",
    "cache_stopped_nodes",
    "key_pair",
    "security_group",
    "use_internal_ips",
}
CONSTRAINTS = ROOT / "constraints.txt"

Config = dict[str, Any]


@pytest.fixture
def config() -> Config:
    loaded: Config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return loaded


def commands(config: Config) -> list[str]:
    return [command for key, value in config.items() if key.endswith("_commands") for command in value]


def starts(config: Config) -> list[str]:
    return [command for command in commands(config) if "ray start" in command]


def setting(command: str, name: str) -> int:
    found = re.search(rf"{name}=(\d+)", command)
    return int(found.group(1)) if found else 10_000


def problems(config: Config) -> Iterator[str]:
    """What is wrong with a cluster file that Ray would accept."""
    if unknown := set(config["provider"]) - PROVIDER_KEYS:
        yield f"unknown provider keys {sorted(unknown)}"
    types = config["available_node_types"]
    for name, node in types.items():
        if min(node.get("min_workers", 0), node.get("max_workers", 0)) < 0:
            yield f"{name}: a negative number of workers"
        if node.get("min_workers", 0) > node.get("max_workers", config["max_workers"]):
            yield f"{name}: min_workers above max_workers"
        for key in ("InstanceType", "ImageId"):
            if not node["node_config"].get(key):
                yield f"{name}: no {key}"
        spot = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        if spot != (name != config["head_node_type"]):
            yield f"{name}: workers are on the spot market, the head is not"
        if name != config["head_node_type"] and node.get("min_workers", 0) != 0:
            yield f"{name}: does not scale from zero"
    head = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    if len(head) != 1 or "--autoscaling-config=~/ray_bootstrap_config.yaml" not in head[0]:
        yield "the head has no --autoscaling-config"
    if len(head) == 1 and "--dashboard-host=127.0.0.1" not in head[0]:
        yield "the dashboard is open"
    if any("RAY_AUTH_MODE=token" not in command for command in starts(config)):
        yield "Ray starts without its token"
    if "~/.ray/auth_token" not in config["file_mounts"]:
        yield "the token is not copied"
    knobs = [setting(head[0], f"RAY_health_check_{knob}") for knob in ("period_ms", "timeout_ms", "failure_threshold")]
    if knobs[2] * (knobs[0] + knobs[1]) > 5000:
        yield "a lost machine is noticed late"
    if knobs[2] < 2 or knobs[1] < 1000:
        yield "one late answer makes a machine dead"
    mlflow = [command for command in commands(config) if "serve.sh" in command]
    if len(mlflow) != 1 or not re.search(r'ALLOWED_HOSTS="[^"*]*:\*,[^"*]*:\*,[^"*]+:5000"', mlflow[0]):
        yield "MLflow answers to any host name, or to none"
    installs = [command for command in config["setup_commands"] if "pip install" in command and "leebert" in command]
    if len(installs) != 1 or "-c ~/leebert/constraints.txt" not in installs[0]:
        yield "the project is not installed at its constraints"
    pins = dict(re.findall(r'"(ray|mlflow)(?:\[[\w,]+\])?==([\d.]+)"', " ".join(config["setup_commands"])))
    if pins != {name: constrained(name) for name in ("ray", "mlflow")}:
        yield f"other versions than the project's: {pins}"


def constrained(package: str) -> str:
    """The version that the project is built with: its constraint, or before there is one, what is installed."""
    if CONSTRAINTS.exists():
        pinned = re.search(rf"^{package}(?:\[[\w,]+\])?==([\d.]+)", CONSTRAINTS.read_text(), re.MULTILINE)
        assert pinned, f"constraints.txt does not pin {package}"
        return pinned.group(1)
    return version(package)


def test_ray_accepts_it(config: Config) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert prepared["available_node_types"]["gpu"]["min_workers"] == 0


def test_nothing_is_wrong_that_ray_would_accept(config: Config) -> None:
    assert list(problems(config)) == []


def edit(key: str, old: str, new: str) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        assert any(old in command for command in config[key]), f"{old!r} is not there to be changed"
        config[key] = [command.replace(old, new) for command in config[key]]

    return change


def put(value: Any, *path: str) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        place = config
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (put("us", "provider", "availabilty_zone"), "unknown provider keys"),
        (put(-1, "available_node_types", "gpu", "max_workers"), "negative"),
        (put(None, "available_node_types", "gpu", "node_config", "InstanceType"), "no InstanceType"),
        (put(1, "available_node_types", "gpu", "min_workers"), "scale from zero"),
        (put({}, "available_node_types", "gpu", "node_config", "InstanceMarketOptions"), "spot"),
        (put({"MarketType": "spot"}, "available_node_types", "head", "node_config", "InstanceMarketOptions"), "spot"),
        (put({"~/leebert": "."}, "file_mounts"), "token is not copied"),
        (edit("head_start_ray_commands", "--autoscaling-config", "--config"), "no --autoscaling-config"),
        (edit("head_start_ray_commands", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"), "dashboard"),
        (edit("worker_start_ray_commands", "RAY_AUTH_MODE=token", ""), "without its token"),
        (edit("head_start_ray_commands", "threshold=2", "threshold=5"), "late"),
        (edit("head_start_ray_commands", "threshold=2", "threshold=1"), "one late answer"),
        (edit("head_start_ray_commands", "localhost:*,127.0.0.1:*,", "*,"), "any host name"),
        (edit("setup_commands", "-c ~/leebert/constraints.txt", ""), "at its constraints"),
        (edit("setup_commands", '"ray[default,tune]==', '"ray[default,tune]==9.'), "other versions"),
    ],
)
def test_the_checks_catch(config: Config, change: Callable[[Config], None], problem: str) -> None:
    change(config)
    assert any(problem in found for found in problems(config))


def test_every_command_is_bash(config: Config) -> None:
    for command in commands(config):
        subprocess.run(["bash", "-n"], input=command, text=True, check=True)


@pytest.mark.slow
def test_the_heads_own_commands_start_mlflow_once(config: Config, tmp_path: Path) -> None:
    """The command as it is, in a home of its own, on a free port; a second `ray up` leaves the server alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "leebert").symlink_to(ROOT)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    python = tmp_path / "venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (command,) = (c for c in config["head_start_ray_commands"] if "serve.sh" in c)
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "MLFLOW_PORT": str(port)}
    run = ["bash", "-c", command.replace("5000", str(port))]
    log = tmp_path / "mlflow.log"
    try:
        # Nothing of it may hold on to the launcher's connection: the output is read to its end at once.
        subprocess.run(run, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True, timeout=10)
        deadline = time.monotonic() + 120
        while "startup complete" not in (log.read_text() if log.exists() else ""):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        subprocess.run(run, env=environment, check=True, timeout=10)
        while "GET /health" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        assert log.read_text().count("Started server process") == 1
    finally:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("HOME") == str(tmp_path):
                    process.kill()


def test_python_is_the_projects(config: Config) -> None:
    wanted = re.search(r'requires-python = ">=(\d\.\d+)"', (ROOT / "pyproject.toml").read_text())
    used = re.search(r"--python (\d\.\d+)", " ".join(config["setup_commands"]))
    assert wanted
    assert used
    assert used.group(1) == wanted.group(1)


def test_the_page_names_what_is_to_be_replaced(config: Config) -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    for placeholder in set(re.findall(r"[\w-]+-REPLACE", (ROOT / "cluster.yaml").read_text())):
        assert placeholder in page
    knobs = {knob for command in starts(config) for knob in re.findall(r"RAY_health_check_\w+=\d+", command)}
    assert len(knobs) == 3
    assert all(knob in page for knob in knobs), "the page's own commands say the same"
