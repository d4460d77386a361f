"""The one curve of score against mean exit layer: its points, their spread, and what is read from it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import crowded, records, surer
from sklearn.metrics import f1_score, matthews_corrcoef

from leebert.errors import ConfigError
from leebert.evaluate import RecordedLogits
from leebert.exits import CRITERIA, with_threshold
from leebert.metrics import measures
from leebert.tradeoff import STEP, Tradeoff, layers_within, mean_curve, replay_point, tradeoff, tradeoffs

HOW = [(name, None) for name in with_threshold()] + [("pcee", 1), ("f-pabee", 1)]


@settings(max_examples=60, deadline=None)
@given(records(), st.sampled_from(HOW))
def test_every_point_is_what_inference_would_do_at_its_threshold(recorded, how):
    criterion, patience = how
    m, _, k = recorded.logits.shape
    found = tradeoff(recorded, criterion, patience, metric="accuracy")
    assert (np.diff(found.layers) >= 0).all()
    if not CRITERIA[criterion].whole:
        assert (np.diff(found.layers) > 0).all()
    for point in found:
        assert point == replay_point(recorded, "accuracy", criterion, point.threshold, patience)
        assert CRITERIA[criterion].problem(point.threshold, m, k) is None
    full = replay_point(recorded, "accuracy", "never", None)
    last = found.point(-1)
    assert (last.layers, last.measures, last.exits) == (full.layers, full.measures, full.exits)
    if not CRITERIA[criterion].several:
        assert found.layers[0] == recorded.layers[0]


@settings(max_examples=40, deadline=None)
@given(
    records(), st.sampled_from([rule for rule in with_threshold().values() if not rule.whole]), st.integers(0, 10_000)
)
def test_no_threshold_lies_in_a_gap(recorded, rule, seed):
    """Random thresholds never reach a number of layers far from all points."""
    m, _, k = recorded.logits.shape
    found = tradeoff(recorded, rule.name)
    low, high = rule.span(m, k)
    tried = np.random.default_rng(seed).uniform(low, high, 6)
    for threshold in (t for t in tried if t > 0):
        layers = replay_point(recorded, "accuracy", rule.name, float(threshold)).layers
        assert np.abs(np.log(found.layers / layers)).min() <= STEP / 2 + 1e-9


@pytest.mark.parametrize("sureness", [0.1, 1, 8])
def test_points_are_spread_over_layers_however_values_are_spread(sureness):
    """Nearly undecided or nearly certain samples crowd at an end of the thresholds' range; their layers don't."""
    record = surer()
    found = tradeoff(RecordedLogits(record.logits * np.float32(sureness), record.labels), metric="accuracy")
    assert np.diff(np.log(found.layers)).max() < 3 * STEP
    assert len(found) < 4 * math.log(6) / STEP / 2


def test_layers_between_two_evenly_spaced_thresholds_are_included():
    record = crowded()
    old = {replay_point(record, "accuracy", "normalised_entropy", (i + 1) / 20).layers for i in range(20)}
    assert old == {1.0}  # no evenly spaced threshold told anything
    found = tradeoff(record, metric="accuracy")
    assert 1 < found.within(0.0).layers < 4
    assert found.within(0.0).measures["score"] == 1.0
    assert replay_point(record, "accuracy", "normalised_entropy", found.within(0.0).threshold) == found.within(0.0)


def by_hand() -> Tradeoff:
    return Tradeoff(
        "confidence", np.array([2.0, 3, 4, 6]), {"score": np.array([0.7, 0.89, 0.885, 0.9])},
        np.array([0.5, 0.6, 0.7, 1.0]), np.zeros((4, 2), int), (2, 6), 12, None, 0.7,
    )  # fmt: skip


def test_what_is_read_from_a_curve_by_hand():
    found = by_hand()
    assert found.within().layers == 3
    assert found.within(0.0).layers == 6
    assert found.within(0.2).threshold == 0.5
    assert found.fastest == 6
    assert (found.nearest(4.5).layers, found.nearest(2).layers) == (3, 6)
    assert found.at_speed_up(3) == pytest.approx(0.885)
    assert found.at_speed_up(2.4) == pytest.approx(0.8925)
    assert found.at_speed_up(1) == found.at_speed_up(2) == 0.9  # it has 6 of 12 layers: never slower than that
    assert found.area() == pytest.approx((0.795 + 0.8875 + 2 * 0.8925) / 4)
    assert Tradeoff.of(json.loads(json.dumps(found.as_dict()))).as_dict() == found.as_dict()
    with pytest.raises(
        ConfigError,
        match=r"speed-up 6\.5: exit criterion confidence on 2 exits reaches layer speed-ups from 2 to 6\.00",
    ):
        found.at_speed_up(6.5)


def test_layers_and_not_exits_count_for_a_model_with_fewer_exits_than_layers():
    record = surer()
    sparse = RecordedLogits(record.logits[[1, 3, 5]], record.labels, (2, 4, 6), 12)
    found = tradeoff(sparse, metric="accuracy")
    assert (found.layers[0], found.layers[-1]) == (2, 6)
    assert found.fastest == 6
    assert found.nearest(3).layers == pytest.approx(4, rel=0.02)
    alone = tradeoff(RecordedLogits(record.logits[5:], record.labels, (6,), 12), metric="accuracy")
    assert (alone.layers.tolist(), alone.fastest, alone.area()) == ([6], 2, alone.scores[0])
    assert layers_within([alone, alone]) == 6


def test_the_mean_over_cells_is_on_one_grid_and_of_one_cell_its_own_points():
    cells = [tradeoff(surer(seed=seed), "pcee", metric="accuracy") for seed in range(3)]
    layers, scores = mean_curve(cells)
    assert layers[0] == max(cell.layers[0] for cell in cells)
    assert layers[1:].tolist() == [x / 10 for x in range(math.floor(10 * layers[0]) + 1, 61)]
    assert scores[-1] == pytest.approx(np.mean([cell.scores[-1] for cell in cells]))
    assert layers_within(cells) == layers[np.flatnonzero(scores >= scores[-1] - 0.01)[0]]
    assert [a.tolist() for a in mean_curve(cells[:1])] == [cells[0].layers.tolist(), cells[0].scores.tolist()]
    assert layers_within(cells[:1]) == cells[0].within().layers


def test_a_table_has_a_row_per_half_layer():
    found = tradeoff(surer(), "entropy")
    assert [p.layers for p in found.in_steps()] == pytest.approx(np.arange(1, 6.1, 0.5), rel=0.02)
    assert len(tradeoff(surer(), "patience").in_steps()) == 5


def test_unlabelled_samples_have_layers_and_no_scores():
    record = surer()
    found = tradeoff(RecordedLogits(record.logits, None), "entropy", metric="accuracy")
    assert found.layers.tolist() == tradeoff(record, "entropy").layers.tolist()
    assert found.point(0).measures == {}
    with pytest.raises(ConfigError, match="entropy: these samples have no labels"):
        found.within()


@pytest.mark.parametrize("asked", [1.05, 1.7, 2, 4.4])
def test_a_speed_up_that_is_asked_for_has_the_nearest_points_there_are(asked):
    record = surer(rows=2000)
    found = tradeoff(record, "confidence", speed_ups=[asked])
    assert found.nearest(asked).speed_up == pytest.approx(asked, rel=1e-3)


@pytest.mark.parametrize("criterion", ["entropy", "confidence", "pcee", "f-pabee", "beem"])
def test_what_is_read_by_score_does_not_depend_on_the_speed_ups_that_were_asked_for(criterion):
    record = surer(rows=3000, seed=5)
    plain = tradeoff(record, criterion, metric="accuracy")
    asked = tradeoff(record, criterion, metric="accuracy", speed_ups=np.linspace(1.05, plain.fastest, 60))
    assert len(asked) > len(plain) + 40
    assert (np.diff(asked.layers) > 0).all()
    assert [asked.within(loss).layers for loss in (0, 0.003, 0.01, 0.03)] == [
        plain.within(loss).layers for loss in (0, 0.003, 0.01, 0.03)
    ]
    assert asked.area() == plain.area()
    assert asked.at_speed_up(1.5) == plain.at_speed_up(1.5)
    assert layers_within([asked, asked]) == layers_within([plain, plain])


def test_both_units_of_one_criterion_agree():
    record = surer()
    nats, share = (tradeoff(record, name, metric="accuracy") for name in ("entropy", "normalised_entropy"))
    assert nats.layers.tolist() == share.layers.tolist()
    assert nats.scores.tolist() == share.scores.tolist()


def test_all_criteria_at_once_and_only_those_that_one_exit_has_a_use_for():
    assert tradeoffs(surer(), metric="accuracy").keys() == set(with_threshold()) - {"normalised_entropy"}
    assert tradeoffs(RecordedLogits(surer().logits[:1], None)).keys() == {"entropy", "confidence"}


def test_thresholds_are_short_numbers():
    assert max(len(f"{t:.12g}") for t in tradeoff(surer(rows=60), "entropy").thresholds[1:-1]) <= 8


def test_a_criterion_that_the_model_has_no_use_for():
    record = surer()
    with pytest.raises(ConfigError, match="compares classes, and this model has one output per exit"):
        tradeoff(RecordedLogits(record.logits[..., :1], None))
    with pytest.raises(ConfigError, match="patience 6 of pcee: this model has 6 exits"):
        tradeoff(record, "pcee", 6)
    with pytest.raises(ConfigError, match="'never' gives a speed-up; use one of patience"):
        tradeoff(record, "never")


def test_the_curve_needs_no_torch_to_be_read():
    code = "import sys, leebert.tradeoff; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@settings(max_examples=50)
@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 10_000))
def test_f1_and_matthews_are_those_of_scikit_learn(rows, classes, seed):
    labels, predicted = np.random.default_rng(seed).integers(0, classes, (2, rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one class only
        assert measures("matthews", labels, predicted)["matthews"] == matthews_corrcoef(labels, predicted)
        if classes <= 2:
            assert measures("acc_f1", labels, predicted)["f1"] == f1_score(labels, predicted, zero_division=0.0)
