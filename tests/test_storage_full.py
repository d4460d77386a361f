"""Storage that fills up, or turns read-only, under a running sweep: real file systems of a few megabytes."""

import contextlib
import json
import subprocess
import threading

import pytest
from clusters import wait_until
from encoders import save_backbone, write_task
from test_sweep import space
from toy_problems import SlowProblem
from toy_sweep import by_value, scores, session, toy_driver, undisturbed

from leebert.errors import StorageError
from tune.store.ledger import Ledger

pytestmark = pytest.mark.slow


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
def test_a_sweep_whose_storage_fails_stops_without_blame_and_ends_the_same_later(request, ray_up, tmp_path, fault):
    path = request.getfixturevalue("small" if fault == "full" else "breakable")
    d = toy_driver(path, SlowProblem(pause=0.02))
    happened = []

    def fail():
        if d.state.fold_epochs >= 3 and not happened:
            happened.append(True)
            fill(path) if fault == "full" else break_(path)

    said = "No space left on device" if fault == "full" else "Read-only file system"
    with by_value():
        try:
            why = d.stop_reason() if session(d, beat=fail) == "stopped" else None
        except StorageError as error:  # of the driver's own records
            why = str(error)
        assert said in why
        assert happened
        assert 3 <= d.state.fold_epochs < 16
        (path / "filler").unlink(missing_ok=True) if fault == "full" else mend(path)
        later = toy_driver(path, SlowProblem(), number=2)
        assert not later.state.failures
        assert session(later) == "finished"
    assert scores(later.state) == undisturbed(tmp_path / "undisturbed")
    assert [c.state for c in later.state.history()] == ["complete"] * 4
    assert not list((path / "checkpoints").iterdir())


def test_a_full_disk_is_said_with_the_way_to_go_on(cli, mlflow_server, small, tmp_path, ray_up):
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
