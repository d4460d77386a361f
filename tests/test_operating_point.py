"""The exit criterion and threshold that meet an aim: within a loss, at a layer speed-up, and what training does of it."""

import json
import math
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest
from encoders import graded_rows, save_backbone, write_task
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_models import LAYERS, save_model

from leebert.config import AimConfig, parse
from leebert.errors import ConfigError
from leebert.evaluate import RecordedLogits
from leebert.exits import CRITERIA, with_threshold
from leebert.exits.criterion import Criterion
from leebert.milliseconds import ExitMilliseconds
from leebert.operating_point import Aim, choose_exits, choose_point, in_words, saved_tradeoffs
from leebert.recipe import RunConfig, _summary, chooses_exits, own_exits
from leebert.serving import Served
from leebert.thresholds import FILE, Chosen, curves, curves_as_json, read_curves
from leebert.tradeoff import replay_point, tradeoff, tradeoffs
from leebert.yaml import dump_yaml, load_yaml


def recorded(seed: int = 0, samples: int = 60, exits: int = 5, classes: int = 3) -> RecordedLogits:
    """Exits that are surer and righter the deeper they are."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=samples)
    depth = np.arange(1, exits + 1)[:, None, None]
    logits = rng.normal(size=(exits, samples, classes)) + depth * np.eye(classes)[labels] * rng.uniform(
        0.1, 1.2, size=(1, samples, 1)
    )
    return RecordedLogits(logits.astype(np.float32), labels)


def agreeing_on_a_mistake() -> RecordedLogits:
    """Three classes; shallow exits agree, unsure, on one class for every sample; the last is right.

    Patience takes agreement for certainty and exits early with a third right; entropy does not.
    """
    labels = np.arange(60) % 3
    logits = np.zeros((5, 60, 3), np.float32)
    logits[:4, :, 0] = 0.1
    logits[4, np.arange(60), labels] = 8.0
    sure = np.arange(60) < 30  # half of the samples are easy
    logits[1:4][:, sure] = 0.0
    logits[1:4, np.flatnonzero(sure), labels[sure]] = 8.0
    return RecordedLogits(logits, labels)


class Ratio:
    """A sample exits when its second class is improbable enough beside the first one."""

    def __init__(self, threshold):
        self.threshold = threshold

    def measure(self, logits, state):
        first, second = logits.topk(2).values.unbind(dim=-1)
        return (second - first).exp(), None

    def step(self, logits, state):
        return self.measure(logits, state)[0] < self.threshold, None


@pytest.fixture
def ratio():
    """A criterion of another package, the best one for the logits of seed 1."""
    yield CRITERIA.register(
        Criterion(
            name="ratio", title="", source="", make=lambda t, *_: Ratio(t), span=lambda *_: (0.0, 1.0), rising=True
        )
    )
    CRITERIA.unregister("ratio")


def test_another_installed_criterion_is_chosen_only_if_it_is_named(ratio):
    record, aim = recorded(1), Aim(None, 2.0)
    every = tradeoffs(record, metric="accuracy", speed_ups=[2.0])
    assert choose_point(list(every.values()), aim).criterion == "ratio"
    before = choose_exits(record, "accuracy", aim)
    assert choose_exits(record, "accuracy", aim, "ratio").criterion == "ratio"
    assert choose_exits(record, "accuracy", aim, published="ratio").criterion == "ratio"
    CRITERIA.unregister("ratio")
    assert choose_exits(record, "accuracy", aim) == before


@pytest.mark.slow
def test_training_records_where_the_chosen_criterion_comes_from(ratio):
    config = RunConfig(task="mrpc", model={"backbone": "x"}, training={"algorithm": "slo"})
    data = MagicMock(**{"task.metric": "accuracy"})
    summaries = [
        _summary(config, data, MagicMock(), MagicMock(), 1, 1, Chosen(c, 0.5, 2, 2)) for c in ("ratio", "entropy")
    ]
    key = "exit criterion ratio"
    assert [summary.get("parts") for summary in summaries] == [{key: str(CRITERIA.origin("ratio"))}, None]


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.005, 0.01, 0.03, 0.1]))
def test_within_a_loss_no_criterion_of_the_model_is_faster_and_the_loss_is_kept(seed, loss):
    record = recorded(seed, samples=40)
    found = choose_point(list(tradeoffs(record, metric="accuracy").values()), Aim(loss, None))
    replayed = replay_point(record, "accuracy", found.criterion, found.threshold, found.patience)
    full = replay_point(record, "accuracy", "never", None).measures["score"]
    assert replayed.speed_up == pytest.approx(found.reached)
    assert full - replayed.measures["score"] == pytest.approx(found.loss)
    assert found.loss <= loss + 1e-9
    for curve in tradeoffs(record, metric="accuracy").values():
        assert curve.within(loss).speed_up <= found.reached + 1e-9


def test_the_default_aim_is_one_point_and_where_that_saves_nothing_a_layer_speed_up_of_two():
    assert Aim.of() == Aim(0.01, 2.0)
    record = recorded()
    wrong = np.where(np.arange(60) < 3, (record.labels + 1) % 3, record.labels)
    hopeless = RecordedLogits(np.stack([np.eye(3)[wrong] * 9.0] * 4 + [np.eye(3)[record.labels] * 9.0]), record.labels)
    found = choose_point(list(tradeoffs(hopeless, metric="accuracy").values()), Aim.of())
    assert found.max_loss is None  # five points are lost wherever a sample exits early
    assert found.asked == 2.0
    assert choose_point(list(tradeoffs(hopeless, metric="accuracy").values()), Aim(0.01, None)).reached == 1.0


def test_a_reduced_network_falls_back_to_the_speed_up_too_where_the_loss_saves_nothing():
    labels = np.arange(60) % 3
    wrong = np.where(np.arange(60) < 3, (labels + 1) % 3, labels)
    logits = np.stack([np.eye(3)[wrong] * 9.0] * 4 + [np.eye(3)[labels] * 9.0])
    reduced = RecordedLogits(
        logits, labels, (1, 2, 3, 4, 5), 6
    )  # all of its layers are 1.2 times faster than the network's
    found = choose_point(list(tradeoffs(reduced, metric="accuracy", speed_ups=[2.0]).values()), Aim.of())
    assert (found.max_loss, found.asked) == (None, 2.0)
    assert found.reached == pytest.approx(2.0)


def test_patience_wins_only_where_it_is_best():
    record = agreeing_on_a_mistake()
    every = list(tradeoffs(record, metric="accuracy").values())
    assert next(c for c in every if c.criterion == "patience").within(0.01).speed_up == 1.0
    found = choose_point(every, Aim.of())
    assert found.criterion != "patience"
    assert found.reached > 1.4
    assert found.loss <= 0.01
    assert in_words(found).startswith(f"exit criterion {found.name}, threshold {found.threshold:.6g}: ")


def test_of_equal_criteria_patience_is_not_taken():
    same = RecordedLogits(np.stack([np.eye(2)[np.arange(40) % 2] * 9.0] * 4), np.arange(40) % 2)
    assert choose_point(list(tradeoffs(same, metric="accuracy").values()), Aim.of()).criterion != "patience"


def test_at_a_speed_up_the_most_accurate_of_the_near_criteria_is_taken():
    record = recorded(3)
    every = list(tradeoffs(record, metric="accuracy", speed_ups=[1.6]).values())
    found = choose_point(every, Aim(None, 1.6))
    near = [c.nearest(1.6) for c in every if abs(c.nearest(1.6).speed_up / 1.6 - 1) <= 0.05]
    assert near
    full = float(every[0].scores[-1])
    assert full - found.loss == pytest.approx(max(point.measures["score"] for point in near))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 20), st.floats(1.0, 16.0))
def test_within_a_time_no_criterion_scores_higher_and_the_time_is_kept(seed, latency):
    logits = recorded(seed)
    times = ExitMilliseconds((1.0, 2.0, 4.0, 8.0, 16.0), (1, 2, 3, 4, 5), "a machine")
    chosen = choose_exits(logits, "accuracy", Aim.of(milliseconds=latency), times=times)
    point = replay_point(logits, "accuracy", chosen.criterion, chosen.threshold, chosen.patience)
    assert times.mean(point.exits) <= latency * (1 + 1e-9)
    every = tradeoffs(logits, metric="accuracy", criteria=CRITERIA.built_in).values()
    within = [p.measures["score"] for curve in every for p in curve if times.mean(p.exits) <= latency]
    assert point.measures["score"] == pytest.approx(max(within))


def test_a_time_that_no_criterion_reaches_or_with_another_aim_is_refused():
    times = ExitMilliseconds((1.0, 2.0, 4.0, 8.0, 16.0), (1, 2, 3, 4, 5), "a machine")
    aim = Aim.of(milliseconds=0.5)
    with pytest.raises(ConfigError, match=r"0.5 ms: exit criterion entropy takes from 1 to 16 ms .*\(a machine\)"):
        choose_exits(recorded(), "accuracy", aim, "entropy", times=times)
    for more in ({"speed_up": 2.0}, {"max_loss": 1.0}):
        with pytest.raises(ConfigError, match="--latency and --.*: give one of them"):
            Aim.of(milliseconds=5, **more)


def test_saved_curves_give_the_same_point():
    record = recorded(1)
    again = saved_tradeoffs(curves(record, metric="accuracy"), record.layers, record.depth)
    for aim in (Aim(0.005, None), Aim(0.03, None), Aim(None, 1.7)):
        for curve in again:
            fresh = tradeoff(record, curve.criterion, curve.patience, metric="accuracy")
            assert choose_point([curve], aim) == choose_point([fresh], aim)
    assert saved_tradeoffs(curves(record), record.layers, record.depth) == []  # of a model of an earlier version


def test_wrong_aims_are_refused():
    with pytest.raises(ConfigError, match=r"--max-loss -1: should be points of score"):
        Aim.of(-1, None)
    with pytest.raises(ConfigError, match=r"--speed-up 0.5: should be a layer speed-up"):
        Aim.of(None, 0.5)
    with pytest.raises(ConfigError, match="no labels"):
        choose_point([tradeoff(recorded(), "entropy")], Aim.of())
    with pytest.raises(ConfigError, match="one exit"):
        choose_point([], Aim.of())
    with pytest.raises(ConfigError, match="criterion 'never' has no threshold to choose"):
        parse(AimConfig, {"criterion": "never"}, "options")


# A saved model: calibration and service.

OWN = {"name": "pairs", "files": {"train": "x.csv"}, "text": ["a", "b"], "label": "label", "labels": ["no", "yes"]}


@pytest.fixture
def saved(tmp_path):
    """A model of four layers with labelled curves beside it, as training leaves them, and texts."""
    folder = save_model(tmp_path / "model", OWN, ("no", "yes"))
    curves_of = curves(recorded(2, samples=200, exits=LAYERS, classes=2), metric="accuracy")
    (folder / FILE).write_text(curves_as_json(curves_of, LAYERS, "200 held-out rows of the training split"))
    pd.DataFrame(graded_rows(300)).to_csv(tmp_path / "texts.csv", index=False)
    return folder


def test_a_request_may_name_the_loss_that_it_allows(saved):
    served = Served(saved)
    curve = tradeoff(recorded(2, samples=200, exits=LAYERS, classes=2), "confidence", metric="accuracy")
    for points in (0.5, 3.0):
        rule = served.exits({"criterion": "confidence", "max_loss": points})
        assert rule.threshold == curve.within(points / 100).threshold
    with pytest.raises(ConfigError, match="speed_up and max_loss: give one of them"):
        served.exits({"speed_up": 2.0, "max_loss": 1.0})
    with pytest.raises(ConfigError, match="max_loss 200: should be points of score"):
        served.exits({"max_loss": 200.0})
    with pytest.raises(ConfigError, match=r"no scores of the exit criterion 'pcee, patience 3' \(it has scores of"):
        served.exits({"criterion": "pcee", "patience": 3, "max_loss": 1.0})


def test_a_loss_or_a_speed_up_that_is_no_number_is_refused(saved):
    for name in ("max_loss", "speed_up"):
        with pytest.raises(ConfigError, match=f"{name} '2': should be a number"):
            Served(saved).predict(pd.DataFrame({"a": ["the"], "b": ["cat"]}), {name: "2"})


EDITS = {
    "a score that is none": lambda points: points[1].__setitem__(2, math.nan),
    "a score that is missing": lambda points: points[1].pop(),
    "one number too many": lambda points: points[1].append(1.0),
    "a speed-up of 0": lambda points: points[1].__setitem__(1, 0.0),
}


@pytest.mark.parametrize("edit", EDITS)
def test_curves_that_were_edited_are_refused_by_their_file(saved, edit):
    told = json.loads((saved / FILE).read_text())
    EDITS[edit](told["curves"]["entropy"])
    (saved / FILE).write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=f"{FILE}: curves: no table of thresholds and speed-ups"):
        Served(saved)


def test_curves_of_an_unknown_criterion_are_refused_by_their_file(saved):
    told = json.loads((saved / FILE).read_text())
    told["curves"]["pcee, patience x"] = told["curves"]["entropy"]
    (saved / FILE).write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=f"{FILE}: curves: no table of thresholds and speed-ups"):
        Served(saved)


@pytest.mark.parametrize(("key", "value"), [("pooling", "max"), ("precision", "fp99"), ("max_length", 0)])
def test_a_configuration_that_was_edited_is_refused_by_its_key(saved, cli, key, value):
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    ran = cli("leebert", "predict", saved, "-", stdin="the cat\tsad\n")
    assert ran.code == 1
    assert f"{path}: {key}: {value!r}: should be" in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("labels", [("no",), ("no", "yes")])
def test_a_speed_up_on_samples_of_one_label_is_not_claimed(saved, cli, labels):
    """A model that answers one class throughout may score 100 there."""
    rows = [row for row in graded_rows(60) if row["label"] in labels]
    (saved.parent / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = json.loads((saved / "config.json").read_text())
    config["task"]["files"]["dev"] = str(saved.parent / "dev.jsonl")
    (saved / "config.json").write_text(json.dumps(config))
    ran = cli("leebert", "evaluate", saved, "--timed-rows", 0, "--all")
    assert ran.code == 0, ran.err
    one = len(labels) == 1
    assert ("no speed-up is claimed, since all samples have the same label" in ran.out) == one
    assert ("so their scores do not show whether the model has learned" in ran.out) == one
    assert ("fastest thresholds at most 1 point below the full model" in ran.out) == (not one)


def test_a_model_of_an_earlier_version_reports_that_it_has_no_scores(saved):
    unscored = curves(recorded(2, samples=200, exits=LAYERS, classes=2))
    (saved / FILE).write_text(curves_as_json(unscored, LAYERS, "held-out rows"))
    with pytest.raises(ConfigError, match="train the model with a validation fold"):
        Served(saved).exits({"max_loss": 1.0})


def test_calibration_within_a_loss_takes_the_validated_threshold_and_reports_its_speed_up_on_the_texts(saved, cli):
    curve = tradeoff(recorded(2, samples=200, exits=LAYERS, classes=2), "entropy", metric="accuracy")
    options = ("--max-loss", 3, "--criterion", "entropy", "--json")
    ran = cli("leebert", "calibrate", saved, saved.parent / "texts.csv", *options)
    assert ran.code == 0, ran.err
    own = ran.json["chosen"]["entropy"]
    assert own["threshold"] == curve.within(0.03).threshold
    assert own["max_loss"] == 0.03
    assert own["loss"] <= 0.03 + 1e-9
    answers = Served(saved).predict(pd.read_csv(saved.parent / "texts.csv"))
    assert LAYERS / answers["exit_layer"].mean() == pytest.approx(own["reached"], rel=0.01)
    # The validated thresholds stay beside the new speed-ups: a request or a second calibration chooses among them, exactly.
    for points in (0.5, 1.0, 3.0):
        rule = Served(saved).exits({"criterion": "entropy", "max_loss": points})
        assert rule.threshold == curve.within(points / 100).threshold
    again = cli("leebert", "calibrate", saved, saved.parent / "texts.csv", *options)
    assert again.json["chosen"] == ran.json["chosen"]


def test_calibration_wants_one_aim(saved, cli):
    for options in ((), ("--speed-up", 2, "--max-loss", 1)):
        ran = cli("leebert", "calibrate", saved, saved.parent / "texts.csv", *options)
        assert ran.code == 1
        assert "calibrate needs one target: give --speed-up RATIO, --max-loss POINTS or --latency 5ms" in ran.err


# Training.


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a task of 200 rows, a backbone of four layers and a configuration of both."""
    folder = tmp_path_factory.mktemp("operating-point")
    save_backbone(folder / "backbone", layers=LAYERS)
    training = {"batch_size": 8, "max_epochs": 3, "lr_theta": 1e-3, "precision": "fp32"}
    model = {"backbone": str(folder / "backbone"), "max_length": 32}
    (folder / "run.yaml").write_text(
        dump_yaml({"task": write_task(folder / "data"), "model": model, "training": training})
    )
    return folder


@pytest.mark.slow
def test_training_chooses_the_criterion_on_its_validation_fold_and_states_what_it_costs(place, cli, tmp_path):
    learns = ("--set", "training.lr_theta=3e-3", "--set", "training.max_epochs=8")  # else no speed-up is told
    ran = cli("leebert", "train", "--config", place / "run.yaml", "--out", tmp_path / "m", "--max-loss", 2, *learns)
    assert ran.code == 0, ran.err
    chosen = json.loads((tmp_path / "m" / "training.json").read_text())["chosen"]
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert (config["exit_strategy"], config["exit_threshold"]) == (chosen["criterion"], chosen["threshold"])
    told = json.loads((tmp_path / "m" / FILE).read_text())
    assert told["chosen"] == chosen
    every = saved_tradeoffs(read_curves(tmp_path / "m"), range(1, LAYERS + 1), LAYERS)
    assert {curve.criterion for curve in every} == set(with_threshold())
    assert chosen["reached"] == pytest.approx(max(curve.within(0.02).speed_up for curve in every))
    assert in_words(Chosen(**chosen)) in ran.out
    assert ran.err.splitlines()[-1] == f"next: leebert evaluate {tmp_path / 'm'}"


@pytest.mark.slow
def test_what_comes_next_is_a_command_that_works(place, cli, tmp_path):
    """With the folder of the configuration, and not for a task without a development split."""
    run = load_yaml(place / "run.yaml")
    run["training"]["max_epochs"] = 1
    run["data"] = {"dir": str(place / "data")}
    (tmp_path / "run.yaml").write_text(dump_yaml(run))
    ran = cli("leebert", "train", "--config", tmp_path / "run.yaml", "--out", tmp_path / "m")
    assert ran.err.splitlines()[-1] == f"next: leebert evaluate {tmp_path / 'm'} --data-dir {place / 'data'}"
    assert cli(*ran.err.splitlines()[-1].removeprefix("next: ").split(), "--timed-rows", 0).code == 0
    del run["task"]["files"]["dev"]
    (tmp_path / "run.yaml").write_text(dump_yaml(run))
    ran = cli("leebert", "train", "--config", tmp_path / "run.yaml", "--out", tmp_path / "n")
    assert ran.code == 0, ran.err
    assert "leebert evaluate" not in ran.out + ran.err


def test_an_aim_beside_a_given_criterion_is_refused_before_training(place, cli, tmp_path):
    ran = cli(
        "leebert", "train", "--config", place / "run.yaml", "--out", tmp_path / "m", "--max-loss", 2,
        "--set", "exits.criterion=patience",
    )  # fmt: skip
    assert ran.code == 1
    assert "aim: `exits` already sets the exit criterion" in ran.err
    assert not (tmp_path / "m").exists()


def test_an_aim_without_a_validation_fold_is_refused_before_training(place, cli, tmp_path):
    for options, why in (
        (("--no-hold-out", "--max-loss", 0.5), "--no-hold-out"),
        (("--set", "theta_updates=3", "--speed-up", 2), "theta_updates trains on the whole training split"),
    ):
        ran = cli("leebert", "train", "--config", place / "run.yaml", "--out", tmp_path / "m", *options)
        assert ran.code == 1
        assert f"needs a validation fold, and there is none ({why})" in ran.err
    assert not (tmp_path / "m").exists()


def test_a_speed_up_that_no_network_of_so_many_layers_has_is_refused_before_training(place, cli, tmp_path):
    ran = cli("leebert", "train", "--config", place / "run.yaml", "--out", tmp_path / "m", "--speed-up", LAYERS + 1)
    assert ran.code == 1
    assert "speed-up 5: should lie between 1 (all layers) and 4 (1 of 4 layers)" in ran.err
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("exits", [{}, {"exits": {"criterion": "patience"}}], ids=["", "of version 0.1"])
def test_a_best_file_names_no_exit_criterion_that_nobody_chose(exits):
    common = {"task": "mrpc", "model": {"backbone": "b"}, "found": {"sweep": "s"}, **exits}
    assert own_exits(parse(RunConfig, common | {"training": {"algorithm": "finetune"}}, "best")).criterion == "never"
    assert chooses_exits(parse(RunConfig, common, "best"))  # once its theta_updates is taken out
    named = common | {"exits": {"criterion": "entropy", "threshold": 0.3}}
    assert not chooses_exits(parse(RunConfig, named, "best"))


@pytest.mark.slow
def test_a_named_criterion_gets_its_threshold_chosen(place, cli, tmp_path):
    options = ("--criterion", "confidence", "--speed-up", 1.5, "--json")
    ran = cli("leebert", "train", "--config", place / "run.yaml", "--out", tmp_path / "m", *options)
    assert ran.code == 0, ran.err
    assert ran.json["chosen"]["criterion"] == "confidence"
    assert ran.json["chosen"]["asked"] == 1.5


def test_a_loss_that_was_allowed_is_what_other_samples_are_held_to():
    within = Chosen("beem", 0.4, asked=1.86, reached=1.86, loss=0.009, max_loss=0.01)
    assert not within.missed(2.5)  # the speed-up came of the aim
    assert within.overspent(0.011)
    assert not within.overspent(0.01)
    assert not Chosen("beem", 0.4, asked=2.0, reached=2.0).overspent(0.5)
