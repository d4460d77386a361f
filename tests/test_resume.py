"""`leebert-tune resume` after its driver was killed, stood still, or with a space that has grown; MLflow and Ray are real."""

import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import in_process
import pytest
from encoders import save_backbone, write_task

from leebert.yaml import dump_yaml
from tune.store.folder import SweepFolder
from tune.store.held_out import cell_logits, held_out_path

SCRIPTS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A task and a backbone of three layers."""
    folder = tmp_path_factory.mktemp("resume")
    save_backbone(folder / "backbone", layers=3)
    (folder / "task.json").write_text(json.dumps(write_task(folder / "data", n=160)))
    return folder


def space(place, name, **more):
    values = {
        "task": json.loads((place / "task.json").read_text()), "backbone": str(place / "backbone"), "max_length": 32,
        "algorithms": ["clo-v2", "blo"], "space": {"lr_theta": [2e-3]}, "folds": 2, "seeds": [0],
        "training": {"batch_size": 4, "max_epochs": 3, "precision": "fp32"},
    }  # fmt: skip
    path = place / f"{name}.yaml"
    path.write_text(dump_yaml(values | more))
    return path


@pytest.fixture(scope="module")
def tuned(cli_without_ray, mlflow_server, place):
    """`leebert-tune`, training included, in this process, on the module's storage and the session's MLflow server."""

    def run(command, *args):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
            return cli_without_ray("leebert-tune", command, *args, "--storage", place / "sweeps")

    return run


@pytest.fixture(scope="module")
def started(place, mlflow_server, ray_up):
    """Starts `leebert-tune` in a process of its own, whose trials run in Ray, or in itself."""
    processes, environment = [], {**os.environ, "MLFLOW_TRACKING_URI": mlflow_server.url}

    def start(command, *args, ray=True):
        program = [SCRIPTS / "leebert-tune"] if ray else [sys.executable, in_process.__file__]
        where = ["--storage", place / "sweeps", *(["--address", ray_up] if ray else [])]
        processes.append(
            subprocess.Popen(
                [*program, command, *args, *where],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def until(process, reached, seconds=300):
    """Wait for something that a process is to bring about."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def recorded(folder):
    return folder.ledger.read().fold_epochs if (folder.path / "manifest.json").is_file() else 0


def numbers(folder):
    """Every score and loss of every epoch, by cell."""
    epochs = folder.ledger.read().epochs
    return {cell: {n: (r["train_loss"], r["exits"]) for n, r in known.items()} for cell, known in epochs.items()}


def told_to_mlflow(server, sweep):
    """A sweep's runs: their identities, statuses, and how often a step of `score/mean` is there."""
    from mlflow import MlflowClient

    client = MlflowClient(server.url)
    experiment = client.get_experiment_by_name("leebert-pairs").experiment_id
    runs = client.search_runs([experiment], f"tags.sweep = '{sweep}'", max_results=1000)
    names = ("kind", "config", "seed", "fold", "label")
    identities = Counter(tuple(run.data.tags.get(name) for name in names) for run in runs)
    steps = Counter(
        (run.info.run_id, name, metric.step)
        for run in runs
        for name in run.data.metrics.keys() & {"score/mean", "cv/score_mean", "depth/score"}
        for metric in client.get_metric_history(run.info.run_id, name)
    )
    return identities, {run.info.status for run in runs}, steps


@pytest.fixture(scope="module")
def whole(tuned, place):
    """The sweep that nobody disturbs."""
    ran = tuned("sweep", space(place, "pairs"), "--name", "uninterrupted")
    assert ran.code == 0, ran.err
    return SweepFolder(place / "sweeps" / "uninterrupted")


@dataclasses.dataclass(frozen=True)
class Interrupted:
    """How a command ended that was asked to, and the state of its sweep then."""

    code: int
    out: str
    err: str
    state: str


def assert_interrupted(ended, folder, expected):
    assert ended.code == expected, ended.err
    assert "unfinished" in ended.out
    assert "running" not in ended.out
    assert "Traceback" not in ended.err
    assert f"leebert-tune resume {folder.path}" in ended.err
    assert ended.state == "stopped"


def state_of(listed, folder):
    return {sweep["sweep"]: sweep["state"] for sweep in listed}[folder.name]


@dataclasses.dataclass(frozen=True)
class Torn:
    """A sweep whose drivers are disturbed by a thread, while other tests run; what the undisturbed one holds."""

    folder: SweepFolder
    interrupted: Future
    numbers: dict
    identities: set


@pytest.fixture(scope="module")
def torn(whole, started, place, mlflow_server):
    folder = SweepFolder(place / "sweeps" / "torn")
    begun = Path("ledger", "driver", "0001", "00000000.jsonl")
    (folder.path / begun).parent.mkdir(parents=True)
    for name in ("manifest.json", "space.yaml"):
        shutil.copy(whole.path / name, folder.path)
    # As if its first driver was killed before it granted a trial.
    (folder.path / begun).write_bytes((whole.path / begun).read_bytes().splitlines(keepends=True)[0])
    assert not folder.ledger.read().attempts
    expected = numbers(whole), set(told_to_mlflow(mlflow_server, "uninterrupted")[0])
    with ThreadPoolExecutor(1) as thread:
        yield Torn(folder, thread.submit(disturb, folder, started), *expected)


def disturb(folder, started):
    """Interrupt a sweep's second driver and kill the third; how the second ended."""
    rng = random.Random(7)
    first = started("resume", "torn")
    until(first, lambda: recorded(folder) >= 1)
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=60)
    listed = started("list", "--json", ray=False).communicate()[0]
    process, epochs = started("resume", "torn"), min(recorded(folder) + rng.randint(1, 3), 11)
    until(process, lambda: recorded(folder) >= epochs)
    time.sleep(rng.uniform(0, 0.2))
    process.kill()
    process.wait()
    return Interrupted(first.returncode, out, err, state_of(json.loads(listed), folder))


@pytest.mark.slow
def test_a_driver_that_stood_still_while_another_took_over_ends_itself(torn, tuned, started, place, mlflow_server):
    path = space(
        place, "still", algorithms=["blo"],
        training={"batch_size": 4, "max_epochs": 3000, "patience": 3000, "precision": "fp32"},
    )  # fmt: skip
    folder = SweepFolder(place / "sweeps" / "still")
    old = started("sweep", path, "--name", "still", ray=False)
    until(old, lambda: recorded(folder) >= 2)
    old.send_signal(signal.SIGSTOP)
    refused = tuned("resume", "still")
    assert refused.code == 1
    assert f"driven by process {old.pid} on {socket.gethostname()}" in refused.err
    assert "--take-over" in refused.err
    done = recorded(folder)
    new = tuned("resume", "still", "--take-over", "--json", "--set", f"budget.fold_epochs={done + 20}")
    assert new.code == 0, new.err
    epochs = {cell: dict(known) for cell, known in folder.ledger.read().epochs.items()}
    decided = folder.ledger.driver_fences()
    assert len(decided) == 2
    told = told_to_mlflow(mlflow_server, "still")
    old.send_signal(signal.SIGCONT)
    _, err = old.communicate(timeout=60)
    assert old.returncode == 1
    assert f"was taken over by process {os.getpid()}" in err
    assert "Traceback" not in err
    after = folder.ledger.read()
    assert {cell: dict(known) for cell, known in after.epochs.items()} == epochs
    assert folder.ledger.driver_fences() == decided
    assert after.end["status"] == "stopped"
    assert told_to_mlflow(mlflow_server, "still") == told
    assert set(told[0].values()) == set(told[2].values()) == {1}


@pytest.mark.slow
def test_damaged_logits_are_named_by_resume_and_made_again_by_repair(whole, torn, tuned, mlflow_server):
    state = whole.ledger.read()
    key, record = next(iter(state.cells.items()))
    path = held_out_path(whole.path, record)
    data, before, told = path.read_bytes(), numbers(whole), told_to_mlflow(mlflow_server, "uninterrupted")
    path.write_bytes(data[:-100])
    named = tuned("resume", "uninterrupted")
    assert named.code == 0, named.err
    assert f"{path} is not the file that the ledger records" in named.err
    assert "to train 1 run(s) again: leebert-tune resume" in named.err
    assert path.read_bytes() == data[:-100]
    repaired = tuned("resume", "uninterrupted", "--repair", "--json")
    assert repaired.code == 0, repaired.err
    assert repaired.json[0]["status"] == "finished"
    assert "repaired: scores identical bit for bit" in repaired.err
    after = whole.ledger.read()
    assert {k for k in state.cells if after.cells[k] != state.cells[k]} == {key}
    assert cell_logits(whole.path, after.cells[key])
    assert after.history() == state.history()
    assert numbers(whole) == before
    assert told_to_mlflow(mlflow_server, "uninterrupted") == told
    assert "nothing to repair" in tuned("resume", "uninterrupted", "--repair").err


LONG = {"batch_size": 4, "max_epochs": 3000, "patience": 3000, "precision": "fp32"}


@pytest.mark.slow
def test_sigterm_is_taken_as_ctrl_c_with_a_code_of_its_own(tuned, place):
    """Sent to this process, which trains: the signals' handling is the same wherever trials run."""
    folder = SweepFolder(place / "sweeps" / "sigterm")

    def terminate():
        deadline = time.monotonic() + 120
        while not recorded(folder) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL, "it would end the test session"
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    ran = tuned("sweep", space(place, "sigterm", algorithms=["blo"], training=LONG), "--name", "sigterm")
    thread.join()
    state = state_of(tuned("list", "--json").json, folder)
    assert_interrupted(Interrupted(ran.code, ran.out, ran.err, state), folder, 143)


@pytest.mark.slow
def test_a_sweep_takes_more_values_and_seeds_and_trains_only_what_is_new(whole, tuned, place):
    before = {cell: r for cell, r in whole.ledger.read().cells.items()}
    ran = tuned("resume", "uninterrupted", space(place, "more", space={"lr_theta": [2e-3, 4e-3]}, seeds=[0, 1]))
    assert ran.code == 0, ran.err
    state = whole.ledger.read()
    assert {cell: state.cells[cell] for cell in before} == before
    assert [c.state for c in state.history()] == ["complete"] * 4
    assert {c.id: {(k.seed, k.fold) for k in c.cells} for c in state.history()} == {
        c.id: {(s, f) for s in (0, 1) for f in (0, 1)} for c in state.history()
    }
    assert state.fold_epochs == 4 * 4 * 3
    assert tuned("status", "uninterrupted", "--json").json["cells_left"] == 0
    # What was extended is what goes on.
    again = tuned("resume", "uninterrupted", place / "pairs.yaml")
    assert again.code == 1
    assert "seeds: 1 is missing" in again.err


@pytest.mark.slow
def test_a_sweep_whose_data_and_backbone_have_moved_is_resumed_to_the_same_scores(whole, tuned, place, tmp_path):
    for name in ("data", "backbone"):
        shutil.copytree(place / name, tmp_path / "was" / name)
    task = json.loads((place / "task.json").read_text())
    task["files"] = {split: str(tmp_path / "was" / "data" / f"{split}.jsonl") for split in ("train", "dev")}
    path = space(place, "moving", task=task, backbone=str(tmp_path / "was" / "backbone"))
    assert tuned("sweep", path, "--name", "moved", "--set", "budget.fold_epochs=4").code == 0
    folder = SweepFolder(place / "sweeps" / "moved")
    described = [(folder.path / name).read_bytes() for name in ("manifest.json", "space.yaml")]
    (tmp_path / "was").rename(tmp_path / "is")
    go_on = ("resume", "moved", "--set", "budget.fold_epochs=1000")
    gone = tuned(*go_on)
    assert gone.code == 1
    assert "no folder" in gone.err
    save_backbone(tmp_path / "other", layers=3, seed=1)
    here = ("--data-dir", tmp_path / "is" / "data")
    other = tuned(*go_on, *here, "--backbone", tmp_path / "other")
    assert other.code == 1
    assert "differs from the sweep's backbone" in other.err
    ran = tuned(*go_on, *here, "--backbone", tmp_path / "is" / "backbone", "--json")
    assert ran.code == 0, ran.err
    assert ran.json[0]["status"] == "finished"
    found, expected = numbers(folder), numbers(whole)
    assert len(found) == 4
    assert found == {cell: expected[cell] for cell in found}
    assert [(folder.path / name).read_bytes() for name in ("manifest.json", "space.yaml")] == described
    (tmp_path / "is" / "data" / "train.jsonl").write_text((tmp_path / "is" / "data" / "dev.jsonl").read_text())
    changed = tuned(*go_on, *here, "--backbone", tmp_path / "is" / "backbone")
    assert "the training data changed since it started" in changed.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("folds=3", "folds: 2 → 3"),
        ("data.subset={rows: 100, seed: 0}", "data.subset.rows: not set → 100"),
        ("training.max_epochs=4", "training.max_epochs: 3 → 4"),
        ("training.warmup=0.2", "training.warmup: not set → 0.2"),
    ],
)
def test_what_would_make_results_that_cannot_be_joined_is_refused(whole, tuned, change, told):
    before = {p: p.read_bytes() for p in whole.path.rglob("*") if p.is_file() and p.parent.name != "lease"}
    ran = tuned("resume", "uninterrupted", "--set", change)
    assert ran.code == 1
    assert told in ran.err
    assert "start another sweep" in ran.err
    assert {p: p.read_bytes() for p in whole.path.rglob("*") if p.is_file() and p.parent.name != "lease"} == before


@pytest.mark.slow
def test_a_driver_that_is_killed_or_interrupted_at_any_moment_loses_and_repeats_nothing(torn, tuned, mlflow_server):
    folder = torn.folder
    assert_interrupted(torn.interrupted.result(), folder, 130)
    before = [r for r in folder.ledger.in_order() if r["kind"] in ("suggest", "grant", "complete")]
    assert tuned("status", "torn", "--json").json["state"] == "died"
    assert folder.ledger.read().end is None
    last = tuned("resume", "torn", "--json")
    assert last.code == 0, last.err
    assert last.json[0]["status"] == "finished"
    assert numbers(folder) == torn.numbers
    records = folder.ledger.in_order()
    epochs = Counter((r["config"], r["seed"], r["fold"], r["epoch"]) for r in records if r["kind"] == "epoch")
    fences = folder.ledger.fences()
    ignored = [r for r in records if r["kind"] == "epoch" and r["seq"] >= fences[r["config"]].get(r["attempt"], 1e9)]
    assert sum(epochs.values()) - len(ignored) == len(epochs) == 12
    made = [r for r in records if r["kind"] in ("suggest", "grant", "complete")]
    assert made[: len(before)] == before
    identities, statuses, steps = told_to_mlflow(mlflow_server, "torn")
    assert identities.keys() == torn.identities
    assert set(identities.values()) == {1}
    assert statuses == {"FINISHED"}
    assert set(steps.values()) == {1}
    assert not list((folder.path / "checkpoints").iterdir())
    assert not list(folder.path.glob(".ray-*"))
