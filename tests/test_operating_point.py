"""The exit criterion and threshold that meet an aim: within a loss, at a layer speed-up, and what training does of it."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leebert.config import AimConfig, parse
from leebert.errors import ConfigError
from leebert.evaluate import HeldOut
from leebert.operating_point import Aim, choose_point, in_words, saved_tradeoffs
from leebert.rules import RULES
from leebert.thresholds import curves
from leebert.tradeoff import replay_point, tradeoff, tradeoffs


def recorded(seed: int = 0, samples: int = 60, exits: int = 5, classes: int = 3) -> HeldOut:
    """Exits that are surer and righter the deeper they are."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=samples)
    depth = np.arange(1, exits + 1)[:, None, None]
    logits = rng.normal(size=(exits, samples, classes)) + depth * np.eye(classes)[labels] * rng.uniform(
        0.1, 1.2, size=(1, samples, 1)
    )
    return HeldOut(logits.astype(np.float32), labels)


def agreeing_on_a_mistake() -> HeldOut:
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
    return HeldOut(logits, labels)


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.005, 0.01, 0.03, 0.1]))
def test_within_a_loss_no_criterion_of_the_model_is_faster_and_the_loss_is_kept(seed, loss):
    record = recorded(seed, samples=40)
    found = choose_point(list(tradeoffs(record, metric="accuracy").values()), Aim(loss, None))
    replayed = replay_point(record, "accuracy", found.strategy, found.threshold, found.patience)
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
    hopeless = HeldOut(np.stack([np.eye(3)[wrong] * 9.0] * 4 + [np.eye(3)[record.labels] * 9.0]), record.labels)
    found = choose_point(list(tradeoffs(hopeless, metric="accuracy").values()), Aim.of())
    assert found.max_loss is None  # five points are lost wherever a sample exits early
    assert found.asked == 2.0
    assert choose_point(list(tradeoffs(hopeless, metric="accuracy").values()), Aim(0.01, None)).reached == 1.0


def test_patience_wins_only_where_it_is_best():
    record = agreeing_on_a_mistake()
    every = list(tradeoffs(record, metric="accuracy").values())
    assert next(c for c in every if c.criterion == "patience").within(0.01).speed_up == 1.0
    found = choose_point(every, Aim.of())
    assert found.strategy != "patience"
    assert found.reached > 1.4
    assert found.loss <= 0.01
    assert in_words(found).startswith(f"exit criterion {found.name}, threshold {found.threshold:.6g}: ")


def test_of_equal_criteria_patience_is_not_taken():
    same = HeldOut(np.stack([np.eye(2)[np.arange(40) % 2] * 9.0] * 4), np.arange(40) % 2)
    assert choose_point(list(tradeoffs(same, metric="accuracy").values()), Aim.of()).strategy != "patience"


def test_at_a_speed_up_the_most_accurate_of_the_near_criteria_is_taken():
    record = recorded(3)
    every = list(tradeoffs(record, metric="accuracy", speed_ups=[1.6]).values())
    found = choose_point(every, Aim(None, 1.6))
    near = [c.nearest(1.6) for c in every if abs(c.nearest(1.6).speed_up / 1.6 - 1) <= 0.05]
    assert near
    full = float(every[0].scores[-1])
    assert full - found.loss == pytest.approx(max(point.measures["score"] for point in near))


def test_saved_curves_give_the_same_point():
    record = recorded(1)
    again = saved_tradeoffs(curves(record, metric="accuracy"), record.layers, record.depth)
    for aim in (Aim(0.005, None), Aim(0.03, None), Aim(None, 1.7)):
        for curve in again:
            fresh = tradeoff(record, curve.criterion, curve.patience, metric="accuracy")
            assert choose_point([curve], aim) == choose_point([fresh], aim)
    assert saved_tradeoffs(curves(record), record.layers, record.depth) == []  # of a model of an earlier version


def test_wrong_aims_are_refused():
    with pytest.raises(ConfigError, match=r"--max-loss -1: points of the score"):
        Aim.of(-1, None)
    with pytest.raises(ConfigError, match=r"--speed-up 0.5: depth / mean layers"):
        Aim.of(None, 0.5)
    with pytest.raises(ConfigError, match="no labels"):
        choose_point([tradeoff(recorded(), "entropy")], Aim.of())
    with pytest.raises(ConfigError, match="one exit"):
        choose_point([], Aim.of())
    with pytest.raises(ConfigError, match="criterion 'never' has no threshold to choose"):
        parse(AimConfig, {"criterion": "never"}, "options")
