"""cluster/onprem.yaml brought up over ssh between four hosts (see hosts.py): sweeps, a machine lost and back, down.

Only addresses, user, key and storage are edited as a user would; packages are there already instead of being installed.
The commands are README's, but for the edited file, a smaller space, and that nobody has to confirm.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ahead import prepared
from hosts import ROOT, Host, Hosts, seconds_until, why_not
from ray_hosts import MLFLOW, Watch, examine, host_of_first_trial, wait_for_epochs

from tune.store.folder import SweepFolder

pytestmark = pytest.mark.slow

BRISK = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1", "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "8", "AUTOSCALER_NODE_SSH_INTERVAL_S": "1",
}  # fmt: skip

#: The command `ray`, which would look for the first time after 5 s whether the machines have gone.
DOWN = """
from ray.autoscaler._private import commands
from ray.scripts.scripts import main
commands.POLL_INTERVAL = 0.5
main()
"""


#: In a process of its own: an encoder takes random numbers, which other tests take meanwhile.
SPACE = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from ray_hosts import write_space
write_space(Path(sys.argv[1]), rows=800)
"""


def readme_commands() -> tuple[list[str], list[str], list[str]]:
    """README's commands for a cluster, as words: up, submit, attach."""
    section = (ROOT / "README.md").read_text().split("\n## The paper's grid on a cluster\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    up, submitting, attach = (shlex.split(line, comments=True) for line in block.strip().splitlines())
    return up, submitting, attach


@dataclasses.dataclass(frozen=True)
class Try:
    """A process on the head that tries to connect."""

    process: subprocess.Popen[bytes]
    log: Path


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A cluster that is up, and what a test needs of it."""

    laptop: Host
    head: Host
    workers: list[Host]
    config: Path
    storage: Path
    space: Path
    watch: Watch
    tunnel: subprocess.Popen[bytes]  # `ray dashboard`, from the laptop
    wrong_token: Try
    no_token: Try

    def of_readme(self, words: list[str]) -> list[str]:
        """A command of README, for this cluster's file and shared folder."""
        return [word.replace("/mnt/sweeps", str(self.storage)) for word in with_config(words, self.config)]

    def ray(self, *words: str, **environment: str) -> str:
        """What `ray ...` prints on the laptop."""
        done = self.laptop.run("ray", *words, **environment)
        return done.stdout + done.stderr


def with_config(words: list[str], config: Path) -> list[str]:
    """A command of README, with the edited file in place of the one to edit."""
    assert words.count("cluster/onprem.yaml") == 1
    return [str(config) if word == "cluster/onprem.yaml" else word for word in words]


@prepared()
def cluster(folder: Path) -> Iterator[Cluster]:
    """`ray up` from a laptop: a head and two workers."""
    if reason := why_not():
        assert not os.environ.get("LEEBERT_HOSTS"), f"LEEBERT_HOSTS is set, but {reason}"
        pytest.skip(reason)
    with Hosts(folder / "hosts", "laptop", "head", "w1", "w2", sshd=True) as hosts:
        laptop, head, *workers = hosts.all.values()
        for host in hosts.all.values():
            host.install()
        (storage := hosts.folder / "sweeps").mkdir()
        (storage / "glue").mkdir()
        config = yaml.safe_load((ROOT / "cluster" / "onprem.yaml").read_text())
        config["provider"].update(head_ip=head.ip, worker_ips=[w.ip for w in workers])
        config["auth"].update(ssh_user="root", ssh_private_key=str(hosts.folder / "key"))
        config["setup_commands"] = []
        for key in ("head_start_ray_commands", "worker_start_ray_commands"):
            config[key] = [command.replace("/mnt/sweeps", str(storage)) for command in config[key]]
        # Ray's autoscaler looks at its machines every 5 s, misses one after 30 s, and tries ssh again after 5 s.
        for key, value in BRISK.items():
            config["head_start_ray_commands"][-1] = f"{key}={value} {config['head_start_ray_commands'][-1]}"
        (path := hosts.folder / "onprem.yaml").write_text(yaml.safe_dump(config))
        token = laptop.start("ray", "get-auth-token", "--generate", log=hosts.folder / "token")
        made = laptop.start("python", "-c", SPACE, str(hosts.folder / "text"), log=hosts.folder / "space")
        assert token.wait() == 0
        up, *_ = readme_commands()
        laptop.run(*with_config(up, path), "--yes", **BRISK)
        watch = Watch(head)
        tunnel = laptop.start("ray", "dashboard", str(path), log=hosts.folder / "tunnel")
        assert made.wait() == 0, (hosts.folder / "space").read_text()
        space = hosts.folder / "text" / "space.yaml"
        strangers = without_the_token(head, storage, space)
        watch.wait_alive(*workers)
        yield Cluster(laptop, head, workers, path, storage, space, watch, tunnel, *strangers)
        watch.close()


def without_the_token(head: Host, storage: Path, space: Path) -> tuple[Try, Try]:
    """Start a sweep with a wrong token, and what connects without one: each takes ten seconds."""
    # Ray asks a head that refuses it again for 20 s.
    environment = {"RAY_AUTH_MODE": "token", "RAY_gcs_server_port_wait_time_s": "1"}
    address = f"{head.ip}:6379"
    sweep = (
        "leebert-tune", "sweep", str(space), "--name", "stranger", "--storage", str(storage),
        "--tracking-uri", f"sqlite:///{storage}/x.db", "--address", address,
    )  # fmt: skip
    # Ray tells a token that is missing from a wrong one; what connects is the same function.
    connect = ("python", "-c", f"from tune.running.session import start_ray; start_ray('{address}')")
    logs = [head.hosts.folder / name for name in ("wrong-token", "no-token")]
    return (
        Try(head.start(*sweep, log=logs[0], **environment, RAY_AUTH_TOKEN="0" * 64), logs[0]),
        Try(head.start(*connect, log=logs[1], **environment, RAY_AUTH_TOKEN_PATH="/none"), logs[1]),
    )


def answer(host: Host, url: str, *options: str) -> str:
    """The status that a host gets from a web server; 000 where there is none."""
    return host.run("curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", *options, url, check=False).stdout


def test_dashboard_and_mlflow_answer_the_head_only(cluster: Cluster) -> None:
    seconds_until(lambda: answer(cluster.head, f"{MLFLOW}/health") == "200", 120, "MLflow is up")
    for port in (5000, 8265):
        for host in (cluster.laptop, *cluster.workers):
            assert answer(host, f"http://{cluster.head.ip}:{port}/") == "000"
    assert answer(cluster.head, f"{MLFLOW}/", "-H", "Host: evil.example.org") == "403"
    assert answer(cluster.head, "http://127.0.0.1:8265/api/jobs/") == "401"
    token = cluster.head.run("cat", f"{cluster.head.hosts.home}/.ray/auth_token").stdout
    assert answer(cluster.head, "http://127.0.0.1:8265/api/jobs/", "-H", f"Authorization: Bearer {token}") == "200"


def test_readme_s_last_command_shows_mlflow_on_the_laptop(cluster: Cluster, tmp_path: Path) -> None:
    *_, attach = readme_commands()
    process = cluster.laptop.start(*cluster.of_readme(attach), log=tmp_path / "log")
    try:
        seconds_until(lambda: answer(cluster.laptop, f"{MLFLOW}/") == "200", 120, "MLflow is forwarded", every=0.5)
        assert process.poll() is None, (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()


def test_every_port_of_ray_refuses_a_stranger(cluster: Cluster) -> None:
    """Ports that speak HTTP answer 401 without the token, but for figures that are read only (Prometheus)."""
    open_ports = re.findall(r"(?:\*|0\.0\.0\.0|10\.77\.0\.\d+):(\d+) ", cluster.head.run("ss", "-ltn").stdout)
    assert {"6379", "8076", "52365"} <= set(open_ports)
    for port in set(open_ports):
        assert answer(cluster.laptop, f"http://{cluster.head.ip}:{port}/api/") in ("000", "401", "404", "200")
        assert "# HELP" in body(cluster, port) or answer(cluster.laptop, f"http://{cluster.head.ip}:{port}/") in (
            "000",
            "401",
        )


def body(cluster: Cluster, port: str) -> str:
    return cluster.laptop.run("curl", "-s", "-m", "5", f"http://{cluster.head.ip}:{port}/", check=False).stdout


def test_a_driver_without_the_token_is_refused_with_one_line(cluster: Cluster) -> None:
    refusal = f"--address {cluster.head.ip}:6379: the cluster's token is missing or wrong"
    assert cluster.no_token.process.wait(timeout=120) == 1
    last = cluster.no_token.log.read_text().splitlines()[-1]
    assert last.startswith(f"leebert.errors.SweepError: {refusal}")
    assert cluster.wrong_token.process.wait(timeout=120) == 1
    printed = cluster.wrong_token.log.read_text()
    assert "Traceback" not in printed
    assert printed.splitlines()[-1].startswith(f"error: {refusal}")
    assert not (cluster.storage / "stranger").exists()


def sweep_named(name: str, cluster: Cluster, algorithm: str) -> list[str]:
    where = ["--name", name, "--address", "auto"]
    return ["sweep", str(cluster.space), *where, "--set", f"algorithms=[{algorithm}]"]


def lose_one_during(cluster: Cluster, name: str, process: subprocess.Popen[bytes], log: Path) -> tuple[Host, float]:
    """Cut the host off on which a sweep's first trial runs, when it has a checkpoint; which, and when."""
    wait_for_epochs(cluster.storage / name, 3, process, log)
    victim = host_of_first_trial(*cluster.workers)
    at = time.time()
    victim.cut()
    # Ray's defaults take a minute for a machine that is cut off.
    assert cluster.watch.dead_after(victim, at) < 12
    return victim, at


def check_nothing_was_lost(cluster: Cluster, name: str, at: float) -> None:
    found = examine(cluster.storage / name, at)
    assert found.status == "finished"
    assert set(found.trained.values()) == {1}, "no epoch was trained twice"
    assert len(found.trained) == 2 * 4  # folds, epochs
    assert max(found.attempts.values()) == 2


@dataclasses.dataclass
class Submitted:
    """A sweep by `ray submit`, once it is under way."""

    process: subprocess.Popen[bytes] | None = None
    log: Path = Path()


@pytest.fixture(scope="module")
def submitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submitted]:
    yield (one := Submitted(log=tmp_path_factory.mktemp("submitted") / "log"))
    if one.process is not None:
        one.process.kill()
        one.process.wait()


def submit(cluster: Cluster, submitted: Submitted) -> subprocess.Popen[bytes]:
    """The sweep's process, which the first call starts."""
    if submitted.process is None:
        _, submitting, _ = readme_commands()
        words = cluster.of_readme(submitting)
        words[words.index("sweep") + 1] = str(cluster.space)
        words += ["--set", "algorithms=[blo]", "--set", "training.max_epochs=1"]
        submitted.process = cluster.laptop.start(*words, log=submitted.log)
    return submitted.process


def test_a_sweep_by_ray_job_submit_survives_a_machine_that_is_cut_off_and_dies(
    cluster: Cluster, submitted: Submitted, tmp_path: Path
) -> None:
    seconds_until(lambda: answer(cluster.laptop, "http://127.0.0.1:8265/") != "000", 60, "the dashboard is forwarded")
    process = cluster.laptop.start(
        "ray", "job", "submit", "--address", "http://127.0.0.1:8265", "--", "leebert-tune", *sweep_named("job", cluster, "clo-v2"),
        log=tmp_path / "log", RAY_AUTH_MODE="token",
    )  # fmt: skip
    victim, at = lose_one_during(cluster, "job", process, tmp_path / "log")
    victim.crash()
    submit(cluster, submitted)
    victim.heal()
    victim.boot()  # Ray's autoscaler starts it again, by ssh: see the next test
    assert process.wait(timeout=300) == 0, (tmp_path / "log").read_text()
    assert "succeeded" in (tmp_path / "log").read_text()
    check_nothing_was_lost(cluster, "job", at)
    cluster.tunnel.kill()


def test_a_sweep_by_ray_submit_while_the_lost_machine_joins_again(cluster: Cluster, submitted: Submitted) -> None:
    assert submit(cluster, submitted).wait(timeout=300) == 0, submitted.log.read_text()
    _, words, _ = readme_commands()
    state = SweepFolder(cluster.storage / words[words.index("--name") + 1]).ledger.read()
    assert (state.end["status"], len(state.cells)) == ("finished", 2)
    experiment = f"{MLFLOW}/api/2.0/mlflow/experiments/get-by-name?experiment_name=leebert-pairs"
    assert "experiment_id" in cluster.ray("exec", str(cluster.config), f"curl -s {experiment}")
    cluster.watch.wait_alive(*cluster.workers, within=300)


@prepared(after="test_cluster_up", using=("cluster",))
def after_down(_: Path, cluster: Cluster) -> Iterator[str]:
    """What `ray down` printed; Ray ends on the head at once, and on the workers as soon as they miss it."""
    done = cluster.laptop.run("python", "-c", DOWN, "down", "--yes", str(cluster.config))
    for host in (cluster.head, *cluster.workers):
        try:
            seconds_until(lambda host=host: not raylets(host), 120, f"Ray has ended on {host.name}", every=0.5)
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *raylets(host)])) from None
    yield done.stdout + done.stderr


@pytest.mark.last
def test_down(after_down: str) -> None:
    """It ends while the tests of other files run."""
    assert "No nodes remaining" in after_down


def raylets(host: Host) -> list[str]:
    """Ray's processes on a host, but for agents that have lost their raylet: they look for a head for a minute more."""
    found = host.run("pgrep", "-af", "raylet/raylet|gcs_server|ray::", check=False).stdout.splitlines()
    return [line for line in found if not line.endswith(("ray::DashboardAgent", "ray::RuntimeEnvAgent"))]
