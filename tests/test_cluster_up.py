"""cluster/onprem.yaml brought up over ssh between four hosts (see hosts.py): sweeps, a machine lost and back, down.

Only addresses, user, key and storage are edited as a user would; packages are there already instead of being installed.
The commands are README's, but for the edited file, a smaller space, and that nobody has to confirm.
"""

from __future__ import annotations

import contextlib
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
from ray_hosts import MLFLOW, Found, Watch, examine, host_of_first_trial, wait_for_epochs

from tune.store.folder import SweepFolder
from tune.store.ledger import SweepState

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
    start, submit, attach = (shlex.split(line, comments=True) for line in block.strip().splitlines())
    return start, submit, attach


def with_config(words: list[str], config: Path) -> list[str]:
    """A command of README, with the edited file in place of the one to edit."""
    assert words.count("cluster/onprem.yaml") == 1
    return [str(config) if word == "cluster/onprem.yaml" else word for word in words]


@dataclasses.dataclass(frozen=True)
class Try:
    """A process that has ended, or has yet to: its log is of use then."""

    process: subprocess.Popen[bytes]
    log: Path

    def ended(self, seconds: float) -> Ended:
        return Ended(self.process.wait(timeout=seconds), self.log.read_text())


@dataclasses.dataclass(frozen=True)
class Ended:
    """A command's exit code, and what it printed."""

    code: int
    printed: str


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A cluster that is up."""

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

    def ray(self, *words: str, **environment: str) -> str:
        """What `ray ...` prints on the laptop."""
        done = self.laptop.run("ray", *words, **environment)
        return done.stdout + done.stderr


@dataclasses.dataclass(frozen=True)
class Doors:
    """The status that web servers of the cluster answer with; 000 where there is none."""

    elsewhere: dict[tuple[str, int], str]  # to hosts other than the head, of MLflow and the dashboard
    other_name: str  # of MLflow, to the head under a foreign name
    jobs: str
    jobs_with_token: str
    ports: dict[
        str, tuple[str, str, str]
    ]  # to the laptop, of every open port: its interface, its page, the page's text


@dataclasses.dataclass(frozen=True)
class Job:
    """A sweep by `ray job submit` that loses a machine."""

    ended: Ended
    noticed: float  # seconds from the cut to the node being declared dead
    ledger: Found


@dataclasses.dataclass(frozen=True)
class Submitted:
    """A sweep by `ray submit`."""

    ended: Ended
    ledger: SweepState
    experiment: str  # what MLflow answers about it
    page: str  # the status of MLflow's page on the laptop


@dataclasses.dataclass(frozen=True)
class Story:
    """All that happens on a cluster, from `ray up` to `ray down`."""

    head_ip: str
    doors: Doors
    wrong_token: Ended
    no_token: Ended
    stranger: bool  # whether the sweep with a wrong token has made its folder
    job: Job
    submitted: Submitted
    down: str  # what `ray down` printed


@prepared()
def story(folder: Path) -> Iterator[Story]:
    if reason := why_not():
        assert not os.environ.get("LEEBERT_HOSTS"), f"LEEBERT_HOSTS is set, but {reason}"
        pytest.skip(reason)
    with up(folder) as cluster:
        seconds_until(lambda: answer(cluster.head, f"{MLFLOW}/health") == "200", 120, "MLflow is up")
        doors = tried(cluster)
        refused = [one.ended(120) for one in (cluster.wrong_token, cluster.no_token)]
        job, submitted = sweeps(cluster, folder)
        stranger = (cluster.storage / "stranger").exists()
        happened = Story(cluster.head.ip, doors, *refused, stranger, job, submitted, taken_down(cluster))
    yield happened


@contextlib.contextmanager
def up(folder: Path) -> Iterator[Cluster]:
    """`ray up` from a laptop: a head and two workers."""
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
        laptop.run(*with_config(readme_commands()[0], path), "--yes", **BRISK)
        watch = Watch(head)
        tunnel = laptop.start("ray", "dashboard", str(path), log=hosts.folder / "tunnel")
        assert made.wait() == 0, (hosts.folder / "space").read_text()
        space = hosts.folder / "text" / "space.yaml"
        strangers = without_the_token(head, storage, space)
        watch.wait_alive(*workers)
        yield Cluster(laptop, head, workers, path, storage, space, watch, tunnel, *strangers)


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


def body(cluster: Cluster, port: str) -> str:
    return cluster.laptop.run("curl", "-s", "-m", "5", f"http://{cluster.head.ip}:{port}/", check=False).stdout


def tried(cluster: Cluster) -> Doors:
    """What the cluster's web servers answer to whom."""
    head, laptop = cluster.head, cluster.laptop
    token = head.run("cat", f"{head.hosts.home}/.ray/auth_token").stdout
    jobs = "http://127.0.0.1:8265/api/jobs/"
    open_ports = re.findall(r"(?:\*|0\.0\.0\.0|10\.77\.0\.\d+):(\d+) ", head.run("ss", "-ltn").stdout)
    pages = {port: f"http://{head.ip}:{port}/" for port in set(open_ports)}
    return Doors(
        {
            (host.name, port): answer(host, f"http://{head.ip}:{port}/")
            for port in (5000, 8265)
            for host in (laptop, *cluster.workers)
        },
        answer(head, f"{MLFLOW}/", "-H", "Host: evil.example.org"),
        answer(head, jobs),
        answer(head, jobs, "-H", f"Authorization: Bearer {token}"),
        {
            port: (answer(laptop, f"{page}api/"), answer(laptop, page), body(cluster, port))
            for port, page in pages.items()
        },
    )


def sweep_named(name: str, cluster: Cluster, algorithm: str) -> list[str]:
    where = ["--name", name, "--address", "auto"]
    return ["sweep", str(cluster.space), *where, "--set", f"algorithms=[{algorithm}]"]


def sweeps(cluster: Cluster, folder: Path) -> tuple[Job, Submitted]:
    """A sweep by `ray job submit` loses a machine; one by `ray submit` runs while that machine joins again."""
    seconds_until(lambda: answer(cluster.laptop, "http://127.0.0.1:8265/") != "000", 60, "the dashboard is forwarded")
    job = Try(
        cluster.laptop.start(
            "ray", "job", "submit", "--address", "http://127.0.0.1:8265", "--", "leebert-tune", *sweep_named("job", cluster, "clo-v2"),
            log=folder / "job", RAY_AUTH_MODE="token",
        ),
        folder / "job",
    )  # fmt: skip
    victim, at, noticed = lose_one_during(cluster, "job", job)
    victim.crash()
    _, words, attach = (with_config(command, cluster.config) for command in readme_commands())
    words = [word.replace("/mnt/sweeps", str(cluster.storage)) for word in words]
    words[words.index("sweep") + 1] = str(cluster.space)
    words += ["--set", "algorithms=[blo]", "--set", "training.max_epochs=1"]
    log = folder / "submitted"
    submitted = Try(cluster.laptop.start(*words, log=log), log)
    victim.heal()
    victim.boot()  # Ray's autoscaler starts it again, by ssh
    first = job.ended(300)
    assert first.code == 0, first.printed
    done = Job(first, noticed, examine(cluster.storage / "job", at))
    cluster.tunnel.kill()
    cluster.tunnel.wait()
    forwarded = shown_by(cluster.laptop, attach, folder / "attach")
    ended = submitted.ended(300)
    assert ended.code == 0, ended.printed
    experiment = f"{MLFLOW}/api/2.0/mlflow/experiments/get-by-name?experiment_name=leebert-pairs"
    answered = cluster.ray("exec", str(cluster.config), f"curl -s {experiment}")
    cluster.watch.wait_alive(*cluster.workers, within=300)
    name = words[words.index("--name") + 1]
    return done, Submitted(ended, SweepFolder(cluster.storage / name).ledger.read(), answered, forwarded)


def shown_by(laptop: Host, attach: list[str], log: Path) -> str:
    """The status of MLflow's page on the laptop, while a terminal on the head is open."""
    terminal = laptop.start(*attach, log=log)
    try:
        seconds_until(lambda: answer(laptop, f"{MLFLOW}/") != "000", 120, "MLflow is forwarded", every=0.5)
        return answer(laptop, f"{MLFLOW}/")
    finally:
        terminal.kill()
        terminal.wait()


def lose_one_during(cluster: Cluster, name: str, sweep: Try) -> tuple[Host, float, float]:
    """Cut the host off on which a sweep's first trial runs, when it has a checkpoint: which, when, seconds until noticed."""
    wait_for_epochs(cluster.storage / name, 3, sweep.process, sweep.log)
    victim = host_of_first_trial(*cluster.workers)
    at = time.time()
    victim.cut()
    return victim, at, cluster.watch.dead_after(victim, at)


def taken_down(cluster: Cluster) -> str:
    """What `ray down` prints; Ray ends on the head at once, and on the workers as soon as they miss it."""
    cluster.watch.close()
    done = cluster.laptop.run("python", "-c", DOWN, "down", "--yes", str(cluster.config))
    for host in (cluster.head, *cluster.workers):
        try:
            seconds_until(lambda host=host: not raylets(host), 120, f"Ray has ended on {host.name}", every=0.5)
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *raylets(host)])) from None
    return done.stdout + done.stderr


def raylets(host: Host) -> list[str]:
    """Ray's processes on a host, but for agents that have lost their raylet: they look for a head for a minute more."""
    found = host.run("pgrep", "-af", "raylet/raylet|gcs_server|ray::", check=False).stdout.splitlines()
    return [line for line in found if not line.endswith(("ray::DashboardAgent", "ray::RuntimeEnvAgent"))]


def test_dashboard_and_mlflow_answer_the_head_only(story: Story) -> None:
    assert set(story.doors.elsewhere) == {(host, port) for host in ("laptop", "w1", "w2") for port in (5000, 8265)}
    assert set(story.doors.elsewhere.values()) == {"000"}
    assert story.doors.other_name == "403"
    assert story.doors.jobs == "401"
    assert story.doors.jobs_with_token == "200"


def test_every_port_of_ray_refuses_a_stranger(story: Story) -> None:
    """Ports that speak HTTP answer 401 without the token, but for figures that are read only (Prometheus)."""
    assert {"6379", "8076", "52365"} <= set(story.doors.ports)
    for interface, page, text in story.doors.ports.values():
        assert interface in ("000", "401", "404", "200")
        assert "# HELP" in text or page in ("000", "401")


def test_a_driver_without_the_token_is_refused_with_one_line(story: Story) -> None:
    refusal = f"--address {story.head_ip}:6379: the cluster's token is missing or wrong"
    assert story.no_token.code == 1
    last = story.no_token.printed.splitlines()[-1]
    assert last.startswith(f"leebert.errors.SweepError: {refusal}")
    assert story.wrong_token.code == 1
    assert "Traceback" not in story.wrong_token.printed
    assert story.wrong_token.printed.splitlines()[-1].startswith(f"error: {refusal}")
    assert not story.stranger


def test_a_sweep_by_ray_job_submit_survives_a_machine_that_is_cut_off_and_dies(story: Story) -> None:
    # Ray's defaults take a minute for a machine that is cut off.
    assert story.job.noticed < 12
    assert "succeeded" in story.job.ended.printed
    ledger = story.job.ledger
    assert ledger.status == "finished"
    assert set(ledger.trained.values()) == {1}, "no epoch was trained twice"
    assert len(ledger.trained) == 2 * 4  # folds, epochs
    assert max(ledger.attempts.values()) == 2


def test_a_sweep_by_ray_submit_while_the_lost_machine_joins_again(story: Story) -> None:
    state = story.submitted.ledger
    assert state.end is not None
    assert (state.end["status"], len(state.cells)) == ("finished", 2)
    assert "experiment_id" in story.submitted.experiment
    assert story.submitted.page == "200", "README's last command forwards MLflow"


def test_down(story: Story) -> None:
    assert "No nodes remaining" in story.down
