"""A sweep over methods of every kind, and what is made of it: ranking, comparisons, pages, a refit, a prediction."""

from __future__ import annotations

import json

import numpy as np
import pytest
from encoders import save_backbone, write_task

from leebert.yaml import dump_yaml, load_yaml
from tune.analysis.labels import algorithm_label
from tune.store.folder import SweepFolder

pytestmark = pytest.mark.slow
METHODS = ("clo-v2", "pabee", "deebert", "truncated", "finetune", "headprune")


@pytest.fixture(scope="module")
def place(tmp_path_factory, cli_without_ray, new_database):
    """A finished sweep, in a folder of its own."""
    root = tmp_path_factory.mktemp("methods")
    task = write_task(root / "task", 80)
    backbone = save_backbone(root / "backbone")
    space = {
        "task": task, "backbone": str(backbone), "max_length": 32, "algorithms": list(METHODS), "space": {"lr_theta": [1e-3, 3e-3]},
        "training": {"batch_size": 8, "max_epochs": 2, "first_epochs": 1, "prune_rounds": 2, "precision": "fp32"},
        "folds": 2, "tracking": {"uri": new_database(root)}, "storage": str(root / "sweeps"),
    }  # fmt: skip
    (root / "space.yaml").write_text(dump_yaml(space))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("LEEBERT_STORAGE", str(root / "sweeps"))
        ran = cli_without_ray("leebert-tune", "sweep", "space.yaml", "--name", "methods")
        assert ran.code == 0, ran.err
        yield root


def test_every_method_finishes_all_its_cells_with_as_many_exits_as_it_has(place):
    state = SweepFolder.find("methods").ledger.read()
    by_method = {}
    for cell in state.cells.values():
        by_method.setdefault(cell["config"], []).append(cell)
    assert len(by_method) == 2 * len(METHODS)
    values = {c.id: c.values for c in state.history()}
    for config, cells in by_method.items():
        assert len(cells) == 2
        one_exit = values[config]["algorithm"] in ("truncated", "finetune", "headprune")
        assert {len(cell["exits"]["score"]) for cell in cells} == {1 if one_exit else 4}
        assert all(cell["best_theta_updates"] <= cell["theta_updates"] for cell in cells)
    structures = [c["structure"] for c in state.cells.values() if values[c["config"]]["algorithm"] == "truncated"]
    assert structures == [{"depth": 4, "layers": 2, "exits": [2]}] * 4


def test_best_ranks_them_by_their_scores_and_reports_that_some_have_one_exit(place, cli):
    ran = cli("leebert-tune", "best", "methods", "--out", "best", "--json", "--anyway")
    assert ran.code == 0, ran.err
    cells = SweepFolder.find("methods").ledger.read().cells.values()
    means = {c["config"]: np.mean([o["score"] for o in cells if o["config"] == c["config"]]) for c in cells}
    assert ran.json["found"]["configuration"] == max(means, key=lambda config: means[config])
    assert "the score of methods with one exit (finetune, headprune, truncated) is that exit's" in ran.err


def test_best_at_a_speed_up_is_among_those_that_have_several_exits(place, cli):
    ran = cli("leebert-tune", "best", "methods", "--out", "fast", "--objective", "speed-up=1.5", "--json", "--anyway")
    assert ran.code == 0, ran.err
    assert ran.json["found"]["values"]["algorithm"] in ("clo-v2", "pabee", "deebert")


def test_methods_with_all_exits_are_compared_also_exit_by_exit(place, cli):
    ran = cli("leebert-tune", "compare", "methods", "--a", "clo-v2", "--b", "deebert", "--json")
    assert ran.code == 0, ran.err
    assert len(json.loads(ran.out)["lines"][0]["exits"]) == 4


def test_a_method_with_one_exit_is_compared_by_its_score_alone_and_not_at_a_speed_up(place, cli):
    ran = cli("leebert-tune", "compare", "methods", "--a", "clo-v2", "--b", "truncated", "--json")
    assert ran.code == 0, ran.err
    (line,) = json.loads(ran.out)["lines"]
    assert line["exits"] == []
    at = cli("leebert-tune", "compare", "methods", "--a", "clo-v2", "--b", "truncated", "--speed-up", "2")
    assert "one exit" in at.out + at.err


def test_the_report_and_the_saved_views_hold_them_all(place, cli):
    ran = cli("leebert-tune", "report", "methods", "--out", "report.html")
    assert ran.code == 0, ran.err
    page = (place / "report.html").read_text()
    assert [name for name in METHODS if algorithm_label(name) not in page] == []
    assert cli("leebert-tune", "views", "methods").code == 0


def test_a_one_exit_model_is_trained_saved_evaluated_and_used(place, cli):
    config = load_yaml(place / "space.yaml")
    run = {
        "task": config["task"], "model": {"backbone": config["backbone"], "max_length": 32},
        "training": {"algorithm": "truncated", "batch_size": 8, "max_epochs": 2, "lr_theta": 1e-3, "precision": "fp32"},
    }  # fmt: skip
    (place / "run.yaml").write_text(dump_yaml(run))
    trained = cli("leebert", "train", "--config", "run.yaml", "--out", "runs/truncated")
    assert trained.code == 0, trained.err
    evaluated = cli("leebert", "evaluate", "runs/truncated", "--json")
    assert evaluated.code == 0, evaluated.err
    texts = "the cat sat\n" if len(config["task"]["text"]) == 1 else "the cat sat\tthe dog ran\n"
    answered = cli("leebert", "predict", "runs/truncated", "-", "--format", "jsonl", stdin=texts)
    assert answered.code == 0, answered.err
    assert json.loads(answered.out.splitlines()[0])["exit_layer"] == 2
    refused = cli(
        "leebert", "predict", "runs/truncated", "-", "--criterion", "patience", "--threshold", "1", stdin=texts
    )
    assert refused.code == 1
    assert "criterion 'patience' compares successive exits, and this model has one exit" in refused.err
    run["exits"] = {"criterion": "patience", "threshold": 1}
    (place / "wrong.yaml").write_text(dump_yaml(run))
    before = cli("leebert", "train", "--config", "wrong.yaml", "--out", "runs/wrong")
    assert before.code == 1
    assert "criterion 'patience' compares successive exits, and this model has one exit" in before.err
    assert "epoch" not in before.err
    assert not (place / "runs" / "wrong").exists()


def test_a_best_file_of_a_method_with_stages_counts_the_last_ones_epochs_and_trains_as_long(
    place, cli, cli_without_ray
):
    """DeeBERT's first stage has one epoch here, its second at most two."""
    config = load_yaml(place / "space.yaml")
    training = {option: value for option, value in config["training"].items() if option != "prune_rounds"}
    (place / "deebert.yaml").write_text(dump_yaml({**config, "algorithms": ["deebert"], "training": training}))
    ran = cli_without_ray("leebert-tune", "sweep", "deebert.yaml", "--name", "deebert")
    assert ran.code == 0, ran.err
    assert cli("leebert-tune", "best", "deebert", "--out", "one", "--anyway").code == 0
    (file,) = (place / "one").glob("*.yaml")
    best = load_yaml(file)
    per_epoch = 80 // (2 * 8)
    assert best["theta_updates"] in (per_epoch, 3 * per_epoch // 2, 2 * per_epoch)
    trained = cli("leebert", "train", "--config", file, "--out", "runs/deebert", "--json")
    assert trained.code == 0, trained.err
    assert trained.json["theta_updates"] == best["theta_updates"]
    assert trained.json["epochs"][-1]["theta_updates"] == best["theta_updates"] + per_epoch
    options = ("--seeds", "1", "--speed-up", "2", "--export", "none", "--out", "refits/deebert", "--anyway")
    refitted = cli("leebert-tune", "refit", file, *options)
    assert refitted.code == 0, refitted.err


def test_a_method_with_one_exit_is_refused_a_refit(place, cli, cli_without_ray):
    config = load_yaml(place / "space.yaml")
    training = {"batch_size": 8, "max_epochs": 2, "precision": "fp32"}
    (place / "short.yaml").write_text(dump_yaml({**config, "algorithms": ["truncated"], "training": training}))
    assert cli_without_ray("leebert-tune", "sweep", "short.yaml", "--name", "short").code == 0
    assert cli("leebert-tune", "best", "short", "--out", "short", "--anyway").code == 0
    (file,) = (place / "short").glob("*.yaml")
    refused = cli("leebert-tune", "refit", file, "--anyway")
    assert refused.code == 1
    assert "has a single exit" in refused.err
    assert cli("leebert-tune", "verify", file).code == 0
