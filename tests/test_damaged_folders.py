"""A sweep's folder with keys missing from its manifest, or with files where folders are expected: one clear line each."""

import json

import numpy as np
import pytest
import quick
from made_sweep import made_sweep

from leebert.evaluate import RecordedLogits
from tune.store.folder import LAYOUT, MANIFEST, spec_of

pytestmark = pytest.mark.usefixtures("undrawn")


def logits(index, fold):
    rng = np.random.default_rng([index, fold])
    return RecordedLogits(rng.normal(size=(6, 30, 2)).astype(np.float32), rng.integers(2, size=30))


@pytest.fixture
def folder(tmp_path):
    made = made_sweep(tmp_path / "sweeps" / "s", "sqlite:///nowhere.db", held_out=logits, configs=3)
    path = made.path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"test_train_ratio": 0.5}))
    return made


@pytest.fixture
def run(tmp_path, cli):
    """A command on the sweep, by its name."""
    more = {
        "best": ["--out", tmp_path / "best", "--anyway"],
        "compare": ["--a", "clo-v2", "--b", "blo", "--speed-up", "2"],
    }

    def run(name):
        sweep = [] if name == "list" else ["s"]
        return cli("leebert-tune", name, *sweep, *more.get(name, ()), "--storage", tmp_path / "sweeps")

    return run


READERS = {
    "spec": ["status", "best", "compare", "report", "resume"], "rows": ["best", "report"], "metric": ["report"],
    "data_fingerprint": ["best", "report", "resume"], "folds": ["best", "resume"], "backbone": ["best", "resume"],
    "versions": ["best"], "code": ["best", "report"], "runtime": ["best"],
}  # fmt: skip


@pytest.mark.parametrize("key", quick.only(["spec", "metric", "versions"], READERS))
def test_a_manifest_without_a_key_is_one_line_with_file_and_key(folder, run, key):
    path = folder.path / "manifest.json"
    values = json.loads(path.read_text())
    del values[key]
    path.write_text(json.dumps(values))
    for name in READERS[key]:
        ran = run(name)
        said = ran.err.replace("sweep s: ", "")
        assert ran.code == 1, name
        assert said.startswith(f"error: {path}: the key '{key}' is missing: the manifest was damaged or edited"), name
        assert said.count("\n") == 1
    assert run("list").code == 0


@pytest.mark.parametrize("key", quick.only(["spec", "rows", "folds"], MANIFEST))
def test_a_manifest_with_a_key_of_another_type_is_one_line_with_file_and_key(folder, run, key):
    path = folder.path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: ["no such thing"]}))
    ran = run("status")
    assert ran.code == 1
    assert ran.err.startswith(f"error: {path}: {key}: ")
    assert ran.err.count("\n") == 1
    assert run("list").code == 0


def test_a_manifest_with_an_unknown_metric_is_one_line_with_file_and_key(folder, run):
    path = folder.path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metric": "recall"}))
    assert run("status").code == 0, "needs no metric"
    for command in ("best", "report"):
        ran = run(command)
        assert ran.code == 1
        assert f"{path}: metric: 'recall' can't be right" in ran.err
        assert ran.err.count("\n") == 1


@pytest.mark.parametrize("name", [name for name in LAYOUT if name not in ("ledger", "ledger/driver")])
def test_a_file_in_a_folders_place_and_a_folder_in_a_files_are_refused(folder, run, name):
    path = folder.path / name
    if path.is_dir():
        path.rename(folder.path.parent / "moved")
    elif path.exists():
        path.unlink()
    if LAYOUT[name]:
        path.write_text("x")
        said = f"{path} is a file, and should be a folder: move it away"
    else:
        path.mkdir()
        said = f"{path} is a folder, and should be a file: move it away"
    for command in ("status", "best", "resume", "stop"):
        ran = run(command)
        assert ran.code == 1, command
        assert ran.err == f"error: {said}\n"
    listed = run("list")
    assert listed.code == 0
    assert "damaged: " in listed.out


def test_a_segment_that_is_a_folder_does_not_hide_the_other_sweeps(folder, cli, tmp_path):
    made_sweep(tmp_path / "sweeps" / "t", "sqlite:///nowhere.db", configs=2)
    (path,) = (folder.path / "ledger" / "driver" / "0001").iterdir()
    path.unlink()
    path.mkdir()
    ran = cli("leebert-tune", "list", "--json", "--storage", tmp_path / "sweeps")
    assert ran.code == 0
    assert [("error" in sweep, sweep["sweep"]) for sweep in ran.json] == [(True, "s"), (False, "t")]
    assert str(path) in ran.json[0]["error"]


def test_a_sweep_that_was_begun_with_several_gpus_for_a_trial_is_still_read(folder, run):
    """Older versions took them, and used one."""
    path = folder.path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["spec"]["resources"]["gpus"] = 2.0
    path.write_text(json.dumps(manifest))
    assert spec_of(folder).resources.gpus == 1
    assert run("status").code == 0
