"""`leebert-tune verify`: a best file's score comes out again, from the file alone, or what differs is said."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from best_files import ROWS

from leebert.yaml import dump_yaml, load_yaml
from tune.models.best_file import content_digest, load_logits, read_best

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rewrite(path, change, seal=False):
    """Edit a best file; `seal`: with the digest of its new contents, as if it had been written so."""
    values = load_yaml(path)
    change(values)
    if seal:
        values["found"]["digest"] = content_digest(values)
    path.write_text(dump_yaml(values))


def keep_cells(count):
    """A change to a best file: what is left takes fewer trainings."""
    return lambda values: values["found"].update(cells=values["found"]["cells"][:count])


def refused(ran, *parts):
    assert ran.code == 1, ran.out
    (line,) = [one for one in ran.err.splitlines() if one.startswith("error: ")]
    for part in parts:
        assert part in line
    assert not ran.out or json.loads(ran.out)["reproduced"] is False


def test_the_file_alone_reproduces_its_score_to_the_last_bit(best_place, cli, tmp_path):
    """The sweep's folder is not needed, and the logits come out too, not only scores that few rows make coarse."""
    sweeps = best_place.folder / "sweeps"
    shutil.move(sweeps, tmp_path / "away")
    try:
        ran = cli("leebert-tune", "verify", best_place.file, "--json")
    finally:
        shutil.move(tmp_path / "away", sweeps)
    assert ran.code == 0, ran.err
    told, found = ran.json, load_yaml(best_place.file)["found"]
    assert (told["reproduced"], told["bit_for_bit"], told["logits_identical"]) == (True, True, True)
    assert told["differs"] == told["foreign"] == []
    assert told["now"] == told["recorded"] == pytest.approx(found["score_mean"], abs=1e-6)
    assert [(c["seed"], c["fold"]) for c in told["cells"]] == [(s, f) for s in (0, 1) for f in (0, 1, 2)]
    assert len(re.findall(r"cell \d of 6: seed", ran.err)) == 6


def test_logits_beside_the_file_are_those_of_the_cells(best_place):
    best = read_best(best_place.file)
    cells = best.logits()
    assert best.found["held_out"]["rows"] == sum(len(c.rows) for c in cells) == 2 * ROWS
    for cell, recorded in zip(cells, best.found["cells"], strict=True):
        assert (cell.seed, cell.fold) == (recorded["seed"], recorded["fold"])
        accuracy = (cell.held_out.logits.argmax(-1) == cell.held_out.labels).mean(axis=1)
        assert accuracy.tolist() == recorded["exits"]
        assert np.mean(accuracy) == recorded["score"]
    assert load_logits(best_place.file.with_name("pairs.held-out.parquet"))[0].held_out.logits.dtype == np.float32


def test_another_precision_is_reported_and_half_a_point_is_the_limit(best_place, cli, tmp_path):
    path = best_place.copy(tmp_path / "best")
    rewrite(path, keep_cells(1), seal=True)
    ran = cli("leebert-tune", "verify", path, "--precision", "bf16", "--json")
    told = ran.json
    assert told["differs"] == ["runtime precision was fp32, is bf16"]
    assert told["bit_for_bit"] is told["logits_identical"] is False
    off = abs(told["now"] - told["recorded"])
    assert told["reproduced"] == (off <= 0.005)
    assert ran.code == (0 if told["reproduced"] else 1)
    assert "runtime precision was fp32, is bf16" in told["conclusion"]


RECORDED = (0.81, 0.79, 0.80)


def judged(*points, differs=("runtime threads was 1, is 2",), unlike=(0, 1, 2)):
    """The verdict on three recorded cells of which each comes out so many points off; `unlike`: which ran elsewhere."""
    from tune.models.verify import CellCheck, Verdict

    return Verdict.of([
        CellCheck(0, fold, was, was + off / 100, off == 0, off == 0, differs if fold in unlike else ())
        for fold, (was, off) in enumerate(zip(RECORDED, points, strict=True))
    ])  # fmt: skip


def test_four_tenths_of_a_point_on_another_runtime_is_reproduced_and_six_is_not():
    near, far = judged(0.4, 0.4, 0.4), judged(0.6, 0.6, 0.6)
    assert (near.reproduced, near.bit_for_bit) == (True, False)
    assert "within 0.5 points: 80.4000 against 80.0000, +0.4000 points" in near.conclusion
    assert "runtime threads was 1, is 2" in near.conclusion
    assert not far.reproduced
    assert "not reproduced: 80.6000 against 80.0000" in far.conclusion
    assert judged(1.0, -1.0, 0.3).reproduced, "the mean is what is promised"


def test_on_equal_settings_a_tenth_of_a_point_is_too_much():
    verdict = judged(0.1, 0, 0, unlike=())
    assert not verdict.reproduced
    assert "the settings of seed 0 fold 0 equal the recorded ones" in verdict.conclusion
    assert judged(0, 0, 0, unlike=()).conclusion == "reproduced bit for bit: 80.0000 over 3 runs"


def test_a_cell_that_ran_elsewhere_excuses_itself_alone():
    assert judged(0, 0.1, 0, unlike=(1,)).reproduced
    verdict = judged(0.1, 0.1, 0, unlike=(1,))
    assert not verdict.reproduced
    assert "seed 0 fold 0 equal the recorded ones" in verdict.conclusion
    assert "fold 1 equal" not in verdict.conclusion


def test_equal_scores_of_other_logits_are_no_reproduction_on_equal_settings():
    same = judged(0, 0, 0, unlike=())
    cells = [dataclasses.replace(c, logits_identical=False) for c in same.cells]
    assert not type(same).of(cells).reproduced
    assert not type(same).of([dataclasses.replace(same.cells[0], now=None)]).reproduced
    assert not dataclasses.replace(same, foreign=("the code",)).reproduced


def test_a_cell_is_run_and_judged_by_its_own_runtime(best_place, cli, tmp_path):
    """One of two cells was recorded in bf16: it alone differs from the file's runtime, and is trained so."""
    path = best_place.copy(tmp_path / "best")

    def change(values):
        keep_cells(2)(values)
        found = values["found"]
        found["cells"][1]["runtime"] = {**found["runtime"], "precision": "bf16"}

    rewrite(path, change, seal=True)
    ran = cli("leebert-tune", "verify", path, "--json")
    first, second = ran.json["cells"]
    assert (first["identical"], first["logits_identical"], first["differs"]) == (True, True, [])
    assert second["differs"] == [], "it ran as it is recorded"
    assert second["logits_identical"] is False, "in bf16, where the logits are fp32's"
    assert ran.code == 1


def test_other_code_is_not_trained_and_nothing_is_claimed(best_place, cli, tmp_path):
    path = best_place.copy(tmp_path / "best")
    rewrite(path, keep_cells(1), seal=True)
    rewrite(path, lambda v: v["found"].update(code="0.0.9+abc"), seal=True)
    ran = cli("leebert-tune", "verify", path)
    refused(ran, "not reproduced, another experiment", "the code was 0.0.9+abc, is ")
    assert "settings differ" not in ran.err
    ran = cli("leebert-tune", "verify", path, "--precision", "bf16")
    refused(ran, "the code was 0.0.9+abc", "settings differ as well: runtime precision was fp32, is bf16")
    assert "run 1" not in ran.err
    ran = cli("leebert-tune", "verify", path, "--anyway", "--json")
    refused(ran, "the code was 0.0.9+abc")
    assert ran.json["now"] == ran.json["recorded"], "its figures are shown all the same"


def test_other_data_is_named(best_place, cli, tmp_path):
    path = best_place.copy(tmp_path / "best")
    rows = (best_place.folder / "data" / "train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join(rows[1:]) + "\n")
    rewrite(path, lambda v: v["task"]["files"].update(train=str(tmp_path / "train.jsonl")))
    refused(cli("leebert-tune", "verify", path), "the training data's fingerprint was", "is")
    rewrite(path, lambda v: v["task"]["files"].update(train=str(tmp_path / "none.jsonl")))
    refused(cli("leebert-tune", "verify", path), "none.jsonl: no such file")


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["training"].update(lr_theta=3e-3),
        lambda v: v.update(theta_updates=1),
        lambda v: v["found"]["cells"][0].update(score=0.9),
        lambda v: v["model"].update(max_length=16),
    ],
)
def test_an_edited_file_is_refused(best_place, cli, tmp_path, change):
    path = best_place.copy(tmp_path / "best")
    rewrite(path, change)
    refused(cli("leebert-tune", "verify", path), str(path), "edited after it was written", "leebert-tune best toy")


def test_missing_foreign_and_damaged_files(best_place, cli, tmp_path):
    refused(cli("leebert-tune", "verify", tmp_path / "none.yaml"), "none.yaml: no such file")
    (tmp_path / "run.yaml").write_text("task: mrpc\nmodel: {backbone: x}\n")
    refused(cli("leebert-tune", "verify", tmp_path / "run.yaml"), "not a best file", "leebert-tune best NAME")
    path = best_place.copy(tmp_path / "best")
    logits = path.with_name("pairs.held-out.parquet")
    logits.write_bytes(logits.read_bytes()[:-1] + b"?")
    refused(cli("leebert-tune", "verify", path), str(logits), "its digest differs")
    logits.unlink()
    refused(cli("leebert-tune", "verify", path), str(logits), "no such file")
    assert cli("leebert-tune", "verify", path, "--precision", "fp64").code == 1


def test_what_may_be_changed_by_hand_may_be_omitted(best_place, tmp_path):
    path = best_place.copy(tmp_path / "best")
    recorded = read_best(path).config
    for change in (
        lambda v: v.update(data=None),
        lambda v: v.pop("data"),
        lambda v: v.update(exits=None),
        lambda v: v.pop("exits", None),
        lambda v: v.update(exits={"criterion": "never"}),
    ):
        rewrite(path, change)
        assert read_best(path).config.training == recorded.training
    rewrite(path, lambda v: v.pop("data", None))
    path.write_text(path.read_text() + "data: {dir: 2026-01-31}\n")
    assert read_best(path).config.data.dir == "2026-01-31", "a name, although YAML reads a date"


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("data: 3", "data: "),
        ("model:", "model: "),
        ("2026-01-31: x", "quote it"),
        ("found: {digest: 2026-01-31}", "found.configuration is missing"),
    ],
)
def test_contents_that_nobody_writes_are_named(best_place, cli, tmp_path, line, part):
    path = best_place.copy(tmp_path / "best")
    values = load_yaml(path)
    values.pop(line.partition(":")[0], None)
    path.write_text(dump_yaml(values) + line + "\n")
    ran = cli("leebert-tune", "verify", path)
    assert ran.code == 1
    assert ran.err.startswith(f"error: {path}: ")
    assert part in ran.err
