"""The cluster files against Ray's own validation, and against what that lets pass; what their shared commands set.

Each check is also shown to fail on a file that is wrong in its way. `cluster/onprem.yaml` is brought up for real in
test_cluster_up.py; for the other two there is no cloud and no Kubernetes here.
"""

from __future__ import annotations

import copy
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FILES = {"cloud": ROOT / "cluster.yaml", "onprem": ROOT / "cluster" / "onprem.yaml"}
PROVIDER_KEYS = {
    "aws": {
        "type",
        "region",
        "availability_zone",
        "cache_stopped_nodes",
        "key_pair",
        "security_group",
        "use_internal_ips",
    },
    "local": {"type", "head_ip", "worker_ips"},
}
START = "~/leebert/cluster/start.sh /mnt/sweeps ray start"
HEAD = f"{START} --head --autoscaling-config=~/ray_bootstrap_config.yaml"
WORKER = f"{START} --address=$RAY_HEAD_IP:6379"
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
SETTINGS = (
    "RAY_health_check_period_ms", "RAY_health_check_timeout_ms", "RAY_health_check_failure_threshold",
)  # fmt: skip

Config = dict[str, Any]
Change = Callable[[Config], None]


def load(kind: str) -> Config:
    config: Config = yaml.safe_load(FILES[kind].read_text())
    return config


@pytest.fixture(params=FILES)
def either(request: pytest.FixtureRequest) -> Config:
    return load(request.param)


def pinned(package: str) -> str:
    (version,) = re.findall(rf"^{package}(?:\[[\w,]+\])?==([\d.]+)", CONSTRAINTS, re.MULTILINE)
    return str(version)


def commands(config: Config) -> list[str]:
    return [command for key, value in config.items() if key.endswith("_commands") for command in value]


def problems(config: Config) -> Iterator[str]:
    """What is wrong with a launcher's file that Ray would accept."""
    kind = config["provider"]["type"]
    if unknown := set(config["provider"]) - PROVIDER_KEYS[kind]:
        yield f"unknown provider keys {sorted(unknown)}"
    if config["file_mounts"].get("~/.ray/auth_token") != "~/.ray/auth_token":
        yield "the token is not copied"
    if config["file_mounts"].get("~/leebert") != ".":
        yield "the checkout is not copied"
    if config["setup_commands"] != ["~/leebert/cluster/install.sh"]:
        yield "not installed by the shared commands"
    # Not a word of a setting stands in the files themselves.
    prefix = "RAY_enable_autoscaler_v2=0 " if kind == "local" else ""
    if config["head_start_ray_commands"] != ["~/venv/bin/ray stop", prefix + HEAD]:
        yield "the head is not started by the shared commands"
    if config["worker_start_ray_commands"] != ["~/venv/bin/ray stop", WORKER]:
        yield "workers are not started by the shared commands"
    if kind == "aws":
        yield from cloud_problems(config)


def cloud_problems(config: Config) -> Iterator[str]:
    for name, node in config["available_node_types"].items():
        is_head = name == config["head_node_type"]
        if min(node.get("min_workers", 0), node.get("max_workers", 0)) < 0:
            yield f"{name}: a negative number of workers"
        for key in ("InstanceType", "ImageId"):
            if not node["node_config"].get(key):
                yield f"{name}: no {key}"
        spot = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        if spot == is_head:
            yield f"{name}: workers are on the spot market, the head is not"
        if not is_head and node.get("min_workers", 0) != 0:
            yield f"{name}: does not scale from zero"
        if not is_head and not node.get("max_workers"):
            yield f"{name}: no max_workers"
        if is_head and node["resources"].get("CPU") != 0:
            yield f"{name}: trials run on the head"
    if config["docker"]["image"] != f"rayproject/ray:{pinned('ray')}-py311-gpu":
        yield "another image than the project's version of Ray and Python"
    mounted = "--volume=/mnt/sweeps:/mnt/sweeps" in config["docker"]["run_options"]
    if not mounted or not any("mount -t nfs4" in c and "/mnt/sweeps" in c for c in config["initialization_commands"]):
        yield "no shared storage"


def test_ray_accepts_it(either: Config) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(either))
    validate_config(prepared)
    workers = {name: node for name, node in prepared["available_node_types"].items()}
    least = {"aws": ("gpu", 0), "local": ("local.cluster.node", 2)}[either["provider"]["type"]]
    assert workers[least[0]]["min_workers"] == least[1]


def test_nothing_is_wrong_that_ray_would_accept(either: Config) -> None:
    assert list(problems(either)) == []


def edit(key: str, old: str, new: str) -> Change:
    def change(config: Config) -> None:
        assert any(old in command for command in config[key]), f"{old!r} is not there to be changed"
        config[key] = [command.replace(old, new) for command in config[key]]

    return change


def put(value: Any, *path: str) -> Change:
    def change(config: Config) -> None:
        place = config
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("kind", "change", "problem"),
    [
        ("cloud", put("us", "provider", "availabilty_zone"), "unknown provider keys"),
        ("onprem", put("us", "provider", "region"), "unknown provider keys"),
        ("cloud", put(-1, "available_node_types", "gpu", "max_workers"), "negative"),
        ("cloud", put(None, "available_node_types", "gpu", "node_config", "InstanceType"), "no InstanceType"),
        ("cloud", put(1, "available_node_types", "gpu", "min_workers"), "scale from zero"),
        ("cloud", put(0, "available_node_types", "gpu", "max_workers"), "no max_workers"),
        ("cloud", put({"CPU": 4}, "available_node_types", "head", "resources"), "trials run on the head"),
        ("cloud", put({}, "available_node_types", "gpu", "node_config", "InstanceMarketOptions"), "spot"),
        ("cloud", put({"MarketType": "spot"}, "available_node_types", "head", "node_config", "InstanceMarketOptions"), "spot"),
        ("cloud", put("rayproject/ray:latest-py311-gpu", "docker", "image"), "another image"),
        ("cloud", put("rayproject/ray:2.60.0-py310-gpu", "docker", "image"), "another image"),
        ("cloud", put([], "docker", "run_options"), "no shared storage"),
        ("cloud", edit("initialization_commands", "mount -t nfs4", "ls"), "no shared storage"),
        ("onprem", put({"~/leebert": "."}, "file_mounts"), "token is not copied"),
        ("onprem", put({"~/.ray/auth_token": "~/.ray/auth_token"}, "file_mounts"), "checkout is not copied"),
        ("cloud", edit("setup_commands", "cluster/install.sh", "setup.py"), "not installed"),
        ("cloud", edit("head_start_ray_commands", "--autoscaling-config", "--config"), "the head is not started"),
        ("onprem", edit("head_start_ray_commands", "RAY_enable_autoscaler_v2=0 ", ""), "the head is not started"),
        ("onprem", edit("head_start_ray_commands", "--head", "--head --dashboard-host=0.0.0.0"), "the head is not started"),
        ("cloud", edit("worker_start_ray_commands", "~/leebert", "export RAY_AUTH_MODE=disabled; ~/leebert"), "workers are not"),
    ],
)  # fmt: skip
def test_the_checks_catch(kind: str, change: Change, problem: str) -> None:
    config = load(kind)
    change(config)
    assert any(problem in found for found in problems(config))


def test_both_files_agree_but_for_their_machines() -> None:
    cloud, onprem = load("cloud"), load("onprem")
    same = set(cloud) & set(onprem) - {"provider", "auth", "head_start_ray_commands"}
    assert {"file_mounts", "rsync_exclude", "setup_commands", "worker_start_ray_commands"} <= same
    assert {key: cloud[key] for key in same} == {key: onprem[key] for key in same}


def test_every_command_is_bash(either: Config) -> None:
    for script in (*commands(either), *((ROOT / "cluster" / f"{n}.sh").read_text() for n in ("start", "install"))):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.fixture
def started(tmp_path: Path) -> Callable[..., tuple[dict[str, str], list[str], str]]:
    """cluster/start.sh in a home of its own, with a program in Ray's place that tells what it is given."""
    for path, text in {
        "venv/bin/ray": 'env > ~/environment; printf "%s\\n" "$@" > ~/arguments',
        "leebert/mlflow/serve.sh": 'env > ~/mlflow; echo "$@" >> ~/served',
    }.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / path).chmod(0o755)
    (tmp_path / "leebert" / "cluster").mkdir()
    (tmp_path / "leebert" / "cluster" / "start.sh").symlink_to(ROOT / "cluster" / "start.sh")
    (tmp_path / "storage").mkdir()
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").touch(0o644)

    def start(*words: str, storage: str = "storage", port: int = 1) -> tuple[dict[str, str], list[str], str]:
        environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "MLFLOW_PORT": str(port)}
        done = subprocess.run(
            [tmp_path / "leebert" / "cluster" / "start.sh", tmp_path / storage, "ray", "start", *words],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=10,
        )  # fmt: skip
        if done.returncode:
            return {}, [], done.stdout
        lines = (line.partition("=") for line in (tmp_path / "environment").read_text().splitlines())
        return {name: value for name, _, value in lines}, (tmp_path / "arguments").read_text().split(), done.stdout

    return start


def test_what_the_head_is_started_with(started: Callable[..., Any], tmp_path: Path) -> None:
    environment, arguments, _ = started("--head", "--autoscaling-config=x")
    assert arguments[:3] == ["start", "--head", "--autoscaling-config=x"]
    assert {"--port=6379", "--num-cpus=0", "--dashboard-host=127.0.0.1"} <= set(arguments)
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["LEEBERT_STORAGE"] == str(tmp_path / "storage")
    period, timeout, threshold = (int(environment[name]) for name in SETTINGS)
    assert threshold * (period + timeout) <= 4500, "a lost machine is noticed late"
    assert threshold >= 2, "one late answer makes a machine dead"
    assert timeout >= 1000, "one late answer makes a machine dead"
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    wait_for(tmp_path / "served")
    mlflow = (tmp_path / "mlflow").read_text()
    assert "MLFLOW_SERVER_ALLOWED_HOSTS=localhost:*,127.0.0.1:*" in mlflow
    assert "MLFLOW_HOST=" not in mlflow, "by itself it listens on the head only"


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} does not come"
        time.sleep(0.05)


def test_mlflow_that_runs_is_left_alone(started: Callable[..., Any], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as there:
        port = there.getsockname()[1]
        environment, _, _ = started("--head", port=port)
    assert environment["MLFLOW_TRACKING_URI"] == f"http://127.0.0.1:{port}"
    assert not (tmp_path / "mlflow.log").exists()


def test_what_a_worker_is_started_with(started: Callable[..., Any], tmp_path: Path) -> None:
    environment, arguments, _ = started("--address=10.0.0.5:6379")
    assert arguments[:2] == ["start", "--address=10.0.0.5:6379"]
    assert environment["RAY_AUTH_MODE"] == "token"
    assert not any("--head" in a or "--dashboard" in a or "--num-cpus" in a for a in arguments)
    assert not (tmp_path / "mlflow.log").exists()
    started("--address=10.0.0.5:6379")
    assert (tmp_path / ".bashrc").read_text() == ". ~/.leebert-env\n", "once"


def test_a_machine_without_the_storage_is_refused(started: Callable[..., Any], tmp_path: Path) -> None:
    _, _, said = started("--address=10.0.0.5:6379", storage="nowhere")
    assert said == f"{tmp_path}/nowhere is missing or not writable: mount the shared folder\n"
    assert not (tmp_path / "arguments").exists()


# KubeRay: its schema is in no package, so these are our own checks.


@pytest.fixture
def kuberay() -> Config:
    """The RayCluster of the manifest, with the claim beside it under `claim`."""
    claim, cluster = yaml.safe_load_all((ROOT / "cluster" / "kuberay.yaml").read_text())
    return {**cluster, "claim": claim}


def kuberay_problems(config: Config) -> Iterator[str]:
    spec = config["spec"]
    if (config["apiVersion"], config["kind"]) != ("ray.io/v1", "RayCluster"):
        yield "not a RayCluster of ray.io/v1"
    keys = {
        "rayVersion",
        "authOptions",
        "enableInTreeAutoscaling",
        "autoscalerOptions",
        "headGroupSpec",
        "workerGroupSpecs",
    }
    if unknown := set(spec) - keys:
        yield f"unknown keys {sorted(unknown)}"
    if spec["rayVersion"] != pinned("ray"):
        yield "another version of Ray"
    if spec.get("authOptions") != {"mode": "token"}:
        yield "no token"
    if spec.get("enableInTreeAutoscaling") is not True:
        yield "does not scale by itself"
    head = spec["headGroupSpec"]
    if head["serviceType"] != "ClusterIP" or head["rayStartParams"].get("dashboard-host") != "127.0.0.1":
        yield "reachable from outside"
    if head["rayStartParams"].get("num-cpus") != "0":
        yield "trials run on the head"
    for group in (head, *spec["workerGroupSpecs"]):
        if any(not isinstance(value, str) for value in group["rayStartParams"].values()):
            yield "rayStartParams are strings"
        pod = group["template"]["spec"]
        if {"name": "sweeps", "persistentVolumeClaim": {"claimName": config["claim"]["metadata"]["name"]}} not in pod[
            "volumes"
        ]:
            yield "no shared storage"
        if any(not c["image"].endswith("/leebert:" + project_version()) for c in pod["containers"]):
            yield "another image than the project's"
        if {"name": "sweeps", "mountPath": "/mnt/sweeps"} not in pod["containers"][0].get("volumeMounts", []):
            yield "no shared storage"
    if config["claim"]["spec"]["accessModes"] != ["ReadWriteMany"]:
        yield "the storage is not shared"
    for group in spec["workerGroupSpecs"]:
        if (group["replicas"], group["minReplicas"]) != (0, 0) or group["maxReplicas"] < 1:
            yield "does not scale from zero"
        if "nvidia.com/gpu" not in group["template"]["spec"]["containers"][0]["resources"]["limits"]:
            yield "no GPU"
    environment = {e["name"]: e["value"] for e in head["template"]["spec"]["containers"][0]["env"]}
    script = (ROOT / "cluster" / "start.sh").read_text()
    if any(f"{name}={environment.get(name)}" not in script for name in SETTINGS):
        yield "other settings than cluster/start.sh"
    mlflow = head["template"]["spec"]["containers"][1]
    hosts = {e["name"]: e["value"] for e in mlflow["env"]}.get("MLFLOW_SERVER_ALLOWED_HOSTS")
    if not hosts or f"MLFLOW_SERVER_ALLOWED_HOSTS='{hosts}'" not in script:
        yield "MLflow answers to other names than with cluster/start.sh"


def project_version() -> str:
    found = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found
    return found.group(1)


def test_nothing_is_wrong_with_the_kuberay_manifest(kuberay: Config) -> None:
    assert list(kuberay_problems(kuberay)) == []


HEAD_POD = ("spec", "headGroupSpec", "template", "spec")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (put("ray.io/v1alpha1", "apiVersion"), "ray.io/v1"),
        (put(1, "spec", "authOption"), "unknown keys"),
        (put("2.59.0", "spec", "rayVersion"), "version"),
        (put({"mode": "disabled"}, "spec", "authOptions"), "no token"),
        (put(False, "spec", "enableInTreeAutoscaling"), "scale by itself"),
        (put("LoadBalancer", "spec", "headGroupSpec", "serviceType"), "outside"),
        (put("0.0.0.0", "spec", "headGroupSpec", "rayStartParams", "dashboard-host"), "outside"),
        (put(0, "spec", "headGroupSpec", "rayStartParams", "num-cpus"), "strings"),
        (put([], *HEAD_POD, "volumes"), "no shared storage"),
        (put(["ReadWriteOnce"], "claim", "spec", "accessModes"), "not shared"),
        (lambda c: c["spec"]["workerGroupSpecs"][0].update(minReplicas=1), "scale from zero"),
        (lambda c: c["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0].update(image="x:latest"), "image"),
        (lambda c: c["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["env"].pop(0), "other settings"),
        (lambda c: c["spec"]["headGroupSpec"]["template"]["spec"]["containers"][1]["env"].clear(), "other names"),
    ],
)  # fmt: skip
def test_the_kuberay_checks_catch(kuberay: Config, change: Change, problem: str) -> None:
    change(kuberay)
    assert any(problem in found for found in kuberay_problems(kuberay))


def test_the_image_is_the_projects(kuberay: Config) -> None:
    """The image for Kubernetes is Ray's own of the pinned version, and what the launcher's file takes."""
    assert re.findall(r"^FROM (.+)", (ROOT / "cluster" / "Dockerfile").read_text(), re.M) == [
        load("cloud")["docker"]["image"]
    ]


def test_python_and_packages_are_the_projects() -> None:
    wanted = re.search(r'requires-python = ">=(\d\.\d+)"', (ROOT / "pyproject.toml").read_text())
    install = (ROOT / "cluster" / "install.sh").read_text()
    assert wanted
    assert f"python{wanted.group(1)} -m venv" in install
    assert "-c constraints.txt" in install
    assert {"ray", "mlflow", "torch"} <= {line.partition("==")[0] for line in CONSTRAINTS.splitlines()}


def test_the_page_names_what_is_to_be_replaced_and_has_the_same_settings() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    for placeholder in set(re.findall(r"[\w-]+-REPLACE", (ROOT / "cluster.yaml").read_text())):
        assert placeholder in page
    knobs = set(re.findall(r"RAY_(?:health_check|gcs_rpc)\w+=\d+", (ROOT / "cluster" / "start.sh").read_text()))
    assert len(knobs) == 4
    assert all(knob in page for knob in knobs), "the page's own commands say the same"
