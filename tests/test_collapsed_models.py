"""Of a model that answers one class throughout no speed-up is advertised: cards, evaluate, calibrate, refit."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from encoders import graded_rows
from saved_models import save_model

from leebert.card import CardFacts, card, recalibrated
from leebert.config import ModelConfig, TrainConfig
from leebert.data.tasks import any_task
from leebert.errors import BackboneError, SweepError
from leebert.evaluate import RecordedLogits
from leebert.metrics import METRICS
from leebert.recipe import RunConfig
from leebert.report import evaluation, print_evaluation
from leebert.thresholds import Chosen
from leebert.tradeoff import replay_point
from tune.models.best_file import BestFile, CellLogits, save_logits
from tune.models.refit import RefitPlan, check_learned, prepare, print_refit

RULE = Chosen("entropy", 0.4, asked=2.0, reached=2.0)
OWN = {"name": "pairs", "files": {"train": "x.csv"}, "text": ["a", "b"], "label": "label", "labels": ["no", "yes"]}


def recorded(learned, seed=0, rows=200):
    """Four exits, 68 % of the labels 1: all answer 1, surer or less sure, or 85 % of the samples right."""
    rng = np.random.default_rng(seed)
    labels = (rng.permutation(rows) < 0.68 * rows).astype(int)
    said = np.where(rng.random((4, rows)) < 0.85, labels, 1 - labels) if learned else np.ones((4, rows), int)
    return RecordedLogits((np.eye(2)[said] * rng.uniform(0.5, 4, (4, rows, 1))).astype(np.float32), labels)


def evaluated(learned):
    found = recorded(learned)
    told = evaluation(found, "acc_f1")
    point = replay_point(found, "acc_f1", "entropy", 0.4).as_dict()
    return {**told, "chosen": [point], "own": point, "truncated_rows": 0}


def facts(learned):
    return CardFacts(
        task="mrpc", columns=("sentence1", "sentence2"), backbone="made-up", algorithm="clo-v2", layers=4, max_length=64, training={},
        theta_updates=10, trained_on="all rows", seed=0, seeds=[0], picked="The first.", own=RULE, chosen=[RULE],
        search={"complete_configurations": 3, "sweep": "s", "score_mean": 0.7, "cells": [1, 2]},
        evaluations={"dev": evaluated(learned)}, spread={}, machine="here", timed_rows=0, versions={},
    )  # fmt: skip


def test_a_card_of_a_collapsed_model_states_it_first_and_claims_no_speed_up():
    text = card(facts(learned=False))
    assert "× layer speed-up" not in text
    assert "| layer speed-up" not in text
    before_use = text.partition("## Use")[0]
    assert "**This model is no classifier yet: on dev every exit predicts a single class**" in before_use
    assert "the majority class scores 74.48). No speed-up is claimed for it." in before_use
    assert "Exits 1, 2, 3, 4 predict a single class." in text


def test_a_card_keeps_its_accuracy_beside_a_registered_metric_whose_measure_has_the_same_name():
    before = card(facts(learned=True))
    accuracy = METRICS["accuracy"]
    other = dataclasses.replace(
        accuracy, name="other", measures={"accuracy": dataclasses.replace(accuracy.measures["accuracy"], hub="")}
    )
    METRICS.register(other)
    try:
        assert card(facts(learned=True)) == before
    finally:
        METRICS.unregister("other")


@pytest.mark.parametrize("learned", [False, True])
def test_predictions_of_a_model_that_is_not_significantly_above_the_majority_class_come_with_a_warning(
    cli, tmp_path, caplog, learned
):
    from leebert.serving import Served

    folder = save_model(tmp_path / "model", OWN, ("no", "yes"))
    (folder / "training.json").write_text(json.dumps({"majority": evaluated(learned)["majority"]}))
    pd.DataFrame(graded_rows(4)).to_csv(tmp_path / "texts.csv", index=False)
    Served(folder)
    predict = ("leebert", "predict", folder, tmp_path / "texts.csv")
    for text in (cli(*predict).err, cli(*predict, "--out", tmp_path / "predictions.jsonl").err, caplog.text):
        assert (text.count("not significantly above the majority class on the validation fold") == 1) is not learned


def test_a_card_of_a_model_that_learned_has_its_margin_and_its_speed_up():
    text = card(facts(learned=True))
    assert "× layer speed-up" in text
    assert "| layer speed-up, dev |" in text.replace("layer speed-up, cross-validation | ", "| ")
    assert "This model is" not in text
    assert (
        "The majority class scores 74.48 and random guessing 53.81. The mean over exits differs from the majority class by +"
        in text
    )


@pytest.mark.parametrize("learned", [False, True])
def test_evaluate_ends_with_the_verdict(learned, capsys):
    print_evaluation("dev", evaluated(learned), ["no", "yes"], every=True)
    out = capsys.readouterr().out
    *_, last = out.splitlines()
    assert "majority class" in out
    assert ("× layer speed-up" in out) == ("fastest thresholds at most 1 point below" in out) == learned
    if learned:
        assert last.startswith("dev: learned: mean over exits minus majority class: +1")
    else:
        assert "no speed-up is claimed, since no exit scores above the majority class; score 74.48" in out
        assert last.startswith(
            "dev: nothing was learned: every exit predicts a single class; the majority class (yes) scores 74.48, chance 53.81; try "
        )
        for what in ("more epochs", "λ1", "pooling"):
            assert what in last


def test_calibration_of_a_collapsed_model_claims_no_ratio(cli, tmp_path):
    import torch

    from leebert.model import load_model

    folder = save_model(tmp_path / "model", OWN, ("no", "yes"))
    model = load_model(folder)
    with torch.no_grad():
        for exit_ in model.heads:
            exit_.weight /= 100
            exit_.bias.copy_(torch.tensor([0.0, 8.0]))
    model.save_pretrained(folder)
    (folder / "README.md").write_text(
        "# pairs\n\nBy default a row leaves by the rule **entropy** at 0.5.\n\n## Use\n\nSo.\n"
    )
    pd.DataFrame(graded_rows(400)).to_csv(tmp_path / "texts.csv", index=False)
    ran = cli("leebert", "calibrate", folder, tmp_path / "texts.csv", "--speed-up", 1.5)
    assert ran.code == 0, ran.err
    assert ran.out.startswith(
        "warning: every exit predicts a single class on all 400 texts, so its speed-up is meaningless; try more"
    )
    assert "asked" not in ran.out
    written = (folder / "README.md").read_text()
    assert "Every exit predicts a single class on 400 unlabelled texts of texts.csv" in written
    assert "no speed-up is claimed" in written
    assert "layer ratio" not in written


def test_a_recalibrated_card_has_its_table_where_classes_differ():
    text = recalibrated("## Use\nSo.\n", RULE, {"entropy": RULE}, {"entropy": (1.9, 2.1)}, "400 texts")
    assert "| entropy | 0.4 | 2.00 | 1.90 to 2.10 |" in text


def best_file(folder, learned):
    """A best file of three folds of a task with its logits beside it."""
    folder.mkdir(exist_ok=True)
    cells = [CellLogits(0, fold, recorded(learned, fold), np.arange(200)) for fold in range(3)]
    found = {"digest": "d", "cells": [{}] * 3, "score_mean": 0.74, "backbone": {}, "folds": {"k": 3}, "seeds": [0]}
    found["held_out"] = save_logits(folder / "mrpc.held-out.parquet", cells)
    config = RunConfig(
        task="mrpc",
        model=ModelConfig(backbone=str(folder / "nothing")),
        training=TrainConfig(),
        theta_updates=10,
        found=found,
    )
    return BestFile(folder / "mrpc.yaml", config, found)


def test_refit_refuses_a_configuration_that_learned_nothing_before_it_reads_data_or_trains(tmp_path):
    plan = RefitPlan((0,), "entropy", 2.0)
    stuck = best_file(tmp_path / "best", learned=False)
    with pytest.raises(
        SweepError, match="not significantly above the majority class in cross-validation .74.48.*--anyway"
    ):
        prepare(stuck, tmp_path / "out", plan)
    assert not (tmp_path / "out").exists()
    for best, anyway in ((stuck, True), (best_file(tmp_path / "good", learned=True), False)):
        with pytest.raises(BackboneError, match="nothing"):  # on to the backbone, of which there is none
            prepare(best, tmp_path / "out", plan, anyway=anyway)


def test_refit_does_not_register_a_model_without_an_exit_above_the_majority_class(capsys):
    told = {
        "registered_seed": 0, "evaluations": {"0": {"dev": evaluated(False)}}, "missed": [], "overspent": [], "diverged": [],
        "chosen": {"entropy": {"criterion": "entropy", "threshold": 0.5, "patience": None}}, "criterion": "entropy", "differs": [],
        "picked": "The first.", "mlflow": {"name": "n", "alias": "champion", "version": 1, "tracking_uri": "here"},
    }  # fmt: skip
    with pytest.raises(SweepError, match="seed 0 on dev: nothing was learned: every exit.* not registered.*--anyway"):
        check_learned(told, anyway=False)
    check_learned(told, anyway=True)
    check_learned({**told, "evaluations": {"0": {"dev": evaluated(True)}}}, anyway=False)
    print_refit(told, "out")
    out = capsys.readouterr().out
    assert "aim 2" not in out
    assert "on dev: nothing was learned" in out


@pytest.mark.slow
def test_macro_f1_is_a_metric_of_tasks():
    declared = {**OWN, "metric": "macro_f1"}
    assert any_task(declared).metric == "macro_f1"
    assert evaluation(recorded(False), "macro_f1")["majority"]["score"] == pytest.approx(0.404762)
