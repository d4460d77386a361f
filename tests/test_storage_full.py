"""Storage that fills up, or turns read-only, under a running sweep: real file systems of a few megabytes."""

import contextlib
import functools
import json
import shutil
import subprocess
import threading

import pytest
from clusters import wait_until
from encoders import save_backbone, write_task
from in_process import run_session
from mlflow_server import contents
from test_mlflow_audit import timed_sweep
from test_sweep import space
from test_tracking import Sweep
from toy_problems import SlowProblem
from toy_sweep import by_value, scores, toy_driver, undisturbed

from leebert.errors import StorageError, TrackingError
from tune.running.session import run_session as run_with_ray
from tune.store.ledger import Ledger
from tune.tracking.rebuild import write_missing

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("synced")]


def mounted(*command):
    """Mounts a file system, or skips the test where that isn't allowed."""
    ran = subprocess.run(["mount", *command], capture_output=True, text=True)
    if ran.returncode:
        pytest.skip(f"can't mount a file system here: {ran.stderr.strip()}")


@contextlib.contextmanager
def unmounted_after(path):
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture
def small(tmp_path):
    """A file system of 6 MB."""
    path = tmp_path / "small"
    path.mkdir()
    mounted("-t", "tmpfs", "-o", "size=6m", "none", path)
    with unmounted_after(path):
        yield path


@pytest.fixture
def breakable(tmp_path):
    """A file system that `break_` turns read-only for all who write in it, as the kernel does after a disk's error."""
    path, image = tmp_path / "disk", tmp_path / "image"
    path.mkdir()
    with open(image, "wb") as f:
        f.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    mounted("-o", "loop", image, path)
    with unmounted_after(path):
        yield path


def break_(path):
    subprocess.run(["mount", "-o", "remount,abort", path], check=True)


def mend(path):
    image = path.with_name("image")
    subprocess.run(["umount", path], check=True)
    assert subprocess.run(["e2fsck", "-fy", image], capture_output=True).returncode <= 1
    subprocess.run(["mount", "-o", "loop", image, path], check=True)


def fill(path):
    """To the last byte."""
    with contextlib.suppress(OSError), open(path / "filler", "wb", buffering=0) as f:
        while True:
            f.write(b"\0" * 4096)


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_sweep_whose_storage_fails_stops_without_blame_and_ends_the_same_later(request, tmp_path, fault):
    """Trials meet a full disk in Ray's workers, a read-only one in the driver's process."""
    path = request.getfixturevalue("small" if fault == "full" else "breakable")
    run = run_session
    if fault == "full":
        request.getfixturevalue("ray_up")
        run = functools.partial(run_with_ray, cpus=1, gpus=0, concurrent=2)
    d = toy_driver(path, SlowProblem(pause=0.02))
    happened = []

    def fail():
        if d.state.fold_epochs >= 3 and not happened:
            happened.append(True)
            fill(path) if fault == "full" else break_(path)

    said = "No space left on device" if fault == "full" else "Read-only file system"
    with by_value():
        try:
            why = d.stopping.reason() if run(d.study, d, beat=fail) == "stopped" else None
        except StorageError as error:  # of the driver's own records
            why = str(error)
        assert said in why
        assert happened
        assert 3 <= d.state.fold_epochs < 16
        (path / "filler").unlink(missing_ok=True) if fault == "full" else mend(path)
    later = toy_driver(path, SlowProblem(), number=2)
    assert not later.state.failures
    assert run_session(later.study, later, beat=lambda: None) == "finished"
    assert scores(later.state) == undisturbed(tmp_path / "undisturbed")
    assert [c.state for c in later.state.history()] == ["complete"] * 4
    assert not list((path / "checkpoints").iterdir())


def test_a_full_disk_is_reported_with_the_way_to_resume(cli_without_ray, mlflow_server, small, tmp_path):
    cli = cli_without_ray
    save_backbone(tmp_path / "backbone", layers=3)
    (tmp_path / "task.json").write_text(json.dumps(write_task(tmp_path / "data", n=80)))
    path = space(
        tmp_path / "space.yaml", tmp_path, algorithms=["blo"],
        training={"batch_size": 8, "max_epochs": 200, "patience": 200, "precision": "fp32"},
    )  # fmt: skip
    storage = ["--storage", small]
    ledger = Ledger(small / "full" / "ledger")

    def fill_later():
        wait_until(lambda: (ledger.folder / "driver").is_dir() and ledger.read().fold_epochs >= 2)
        fill(small)

    filling = threading.Thread(target=fill_later)
    filling.start()
    ran = cli("leebert-tune", "sweep", path, "--name", "full", "--tracking-uri", mlflow_server.url, *storage)
    filling.join()
    assert "No space left on device" in ran.err
    assert "leebert-tune resume " + str(small / "full") in ran.err
    assert "Traceback" not in ran.err
    done = ledger.read().fold_epochs
    assert done < 400
    (small / "filler").unlink()
    again = cli("leebert-tune", "resume", "full", "--set", f"budget.fold_epochs={done + 2}", *storage)
    assert again.code == 0, again.err
    state = ledger.read()
    assert not state.failures
    assert state.fold_epochs >= done + 2


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A database with MLflow's tables, and a whole sweep in another."""
    folder = tmp_path_factory.mktemp("tables")
    Sweep(f"sqlite:///{folder}/empty.db").tracker().check()
    whole = Sweep(f"sqlite:///{folder}/whole.db")
    whole.name = "whole"
    whole.send(timed_sweep())
    return folder


def disk_of(path, size):
    path.mkdir()
    mounted("-t", "tmpfs", "-o", f"size={size}", "none", path)
    return unmounted_after(path)


@pytest.mark.parametrize("size", ["400k"])  # where some tables fit
def test_a_disk_that_is_full_before_mlflows_tables_are_made_is_named_and_nothing_half_made_is_left(
    tmp_path, capfd, size
):
    with disk_of(tmp_path / "disk", size) as disk:
        sweep = Sweep(f"sqlite:///{disk}/mlflow.db")
        with pytest.raises(TrackingError, match=rf"the disk that holds {disk}/mlflow\.db is full .* Free some space"):
            sweep.tracker().check()
        assert not list(disk.iterdir())
        subprocess.run(["mount", "-o", "remount,size=6m", disk], check=True)
        sweep.tracker().check()
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("moment", [0, 5], ids=["start", "middle"])
def test_a_disk_that_fills_up_under_mlflows_database_is_reported_in_two_lines_and_mended_later(
    tmp_path, tables, capfd, moment, log_lines
):
    events = timed_sweep()
    with disk_of(tmp_path / "disk", "3m") as disk:
        shutil.copy(tables / "empty.db", disk / "mlflow.db")
        sweep = Sweep(f"sqlite:///{disk}/mlflow.db")
        sweep.name, sweep.experiment = "whole", "full"
        tracker = sweep.tracker()
        tracker.check()
        for event in events[:moment]:
            tracker.put(event)
        wait_until(lambda: not tracker.waiting)
        fill(disk)
        for event in events[moment:]:
            tracker.put(event)
        assert tracker.close(2) == len(events[moment:])
        lines = [line for line in log_lines() if sweep.uri in line]  # another test's tracker may still end
        assert [line.split(": ")[0] for line in lines] == [
            f"MLflow can't be used at {sweep.uri}",
            f"MLflow at {sweep.uri}",
        ]
        assert f"the disk that holds {disk}/mlflow.db is full (0.0 MB of 3 MB are free). Free some" in lines[0]
        assert "`leebert-tune rebuild-mlflow` sends them" in lines[1]
        (disk / "filler").unlink()
        later = sweep.tracker()
        for event in events:
            later.put(event)
        assert later.close(30) == 0
        assert write_missing(later, events, lambda: None) == (0, [])
        assert contents(disk / "mlflow.db", "whole") == contents(tables / "whole.db", "whole")
    assert "Traceback" not in "".join(capfd.readouterr())
