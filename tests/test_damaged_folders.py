"""A sweep's folder with keys missing from its manifest, or with files where folders are expected: one clear line each."""

import json

import numpy as np
import pytest
from made_sweep import made_sweep

from leebert.evaluate import HeldOut
from tune.store.folder import LAYOUT, MANIFEST


def logits(index, fold):
    rng = np.random.default_rng([index, fold])
    return HeldOut(rng.normal(size=(6, 30, 2)).astype(np.float32), rng.integers(2, size=30))


@pytest.fixture
def folder(tmp_path):
    made = made_sweep(tmp_path / "sweeps" / "s", "sqlite:///nowhere.db", held_out=logits, configs=7)
    path = made.path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"test_train_ratio": 0.5}))
    return made


@pytest.fixture
def commands(tmp_path, cli):
    """Every command that reads a sweep, by name."""
    every = {
        "list": [], "status": ["s"], "best": ["s", "--out", tmp_path / "best"], "resume": ["s"],
        "compare": ["s", "--a", "clo-v2", "--b", "blo", "--speed-up", "2"], "report": ["s"], "stop": ["s"],
    }  # fmt: skip
    return lambda: {
        name: cli("leebert-tune", name, *args, "--storage", tmp_path / "sweeps") for name, args in every.items()
    }


@pytest.mark.parametrize("key", MANIFEST)
@pytest.mark.parametrize("wrong", ["missing", "of another type"])
def test_a_manifest_with_a_damaged_key_is_one_line_with_file_and_key(folder, commands, key, wrong):
    path = folder.path / "manifest.json"
    values = json.loads(path.read_text())
    if wrong == "missing":
        del values[key]
    else:
        values[key] = ["no such thing"]
    path.write_text(json.dumps(values))
    named = 0
    for name, ran in commands().items():
        if ran.code and name != "stop":  # whose sweep has finished
            errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1, (name, ran.err)
            said = errors[0].replace(f"error: sweep s: {path}", f"error: {path}")
            if name != "resume" or str(path) in said:  # its data and backbone are nowhere
                assert said.startswith(f"error: {path}: ")
                assert key in said
                named += 1
    assert named >= (1 if key != "test_train_ratio" or wrong != "missing" else 0)
    if key in ("spec", "data_fingerprint", "folds", "backbone"):
        assert f"{path}: " in commands()["resume"].err


@pytest.mark.parametrize("name", [name for name in LAYOUT if name not in ("ledger", "ledger/driver")])
def test_a_file_in_a_folders_place_and_a_folder_in_a_files_are_refused(folder, commands, name):
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
    for command, ran in commands().items():
        if command == "list":
            assert ran.code == 0
            assert "damaged: " in ran.out
        else:
            assert ran.code == 1, command
            assert said in ran.err
            assert ran.err.count("\n") == 1


def test_a_segment_that_is_a_folder_does_not_hide_the_other_sweeps(folder, commands, cli, tmp_path):
    made_sweep(tmp_path / "sweeps" / "t", "sqlite:///nowhere.db", configs=2)
    (path,) = (folder.path / "ledger" / "driver" / "0001").iterdir()
    path.unlink()
    path.mkdir()
    ran = cli("leebert-tune", "list", "--json", "--storage", tmp_path / "sweeps")
    assert ran.code == 0
    assert [("error" in sweep, sweep["sweep"]) for sweep in ran.json] == [(True, "s"), (False, "t")]
    assert str(path) in ran.json[0]["error"]
