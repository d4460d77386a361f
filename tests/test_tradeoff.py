"""Score against speed from held-out logits: the curve, what is read from it, and who lies on the front."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import drawn

from leebert.errors import ConfigError
from leebert.evaluate import RecordedLogits
from leebert.exits import CRITERIA, with_threshold
from leebert.tradeoff import replay_point
from tune.analysis.compare import compare
from tune.analysis.tradeoff import RankingObjective, Tradeoff, curves, curves_or_none, mean_curve, pareto, tradeoff
from tune.store.held_out import save_held_out
from tune.store.history import Cell, Configuration, EpochScore
from tune.store.ranking import best


def held_out(seed: int, exits: int = 4, rows: int = 60, classes: int = 3) -> RecordedLogits:
    """Logits that say more of the label the deeper the exit."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=rows)
    signal = np.linspace(0.3, 2.0, exits)[:, None, None] * np.eye(classes)[labels][None]
    return RecordedLogits((rng.normal(size=(exits, rows, classes)) + signal).astype(np.float32), labels)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from(sorted(with_threshold())), st.integers(2, 6), st.integers(2, 4))
def test_a_curve_ends_at_the_last_exit_and_holds_points_of_replay(seed, rule, exits, classes):
    record = held_out(seed, exits, 40, classes)
    found = tradeoff(record, "accuracy", rule)
    steps = np.diff(found.layers)
    assert (steps >= 0).all() if CRITERIA[rule].whole else (steps > 0).all()  # two patiences may tell the same
    assert found.layers[-1] == exits
    last = float((record.logits[-1].argmax(-1) == record.labels).mean())
    assert found.at_speed_up(1.0) == pytest.approx(last)
    scores = [found.first_exit, *found.scores]
    assert min(scores) - 1e-12 <= found.area() <= max(scores) + 1e-12
    if not CRITERIA[rule].several:  # whose rows stay for two exits or so
        assert found.layers[0] == pytest.approx(1.0)
        first = float((record.logits[0].argmax(-1) == record.labels).mean())
        assert found.scores[0] == pytest.approx(first)


@pytest.mark.slow
def test_the_score_at_a_speed_up_lies_between_the_thresholds_beside_it():
    record = held_out(0, rows=500)
    found = tradeoff(record, "accuracy", "normalised_entropy")
    wanted = 4 / 1.7
    beside = [replay_point(record, "accuracy", "normalised_entropy", t) for t in np.linspace(0, 1, 2000)]
    near = [p.measures["score"] for p in beside if abs(p.layers - wanted) < 0.1]
    assert min(near) - 0.01 <= found.at_speed_up(1.7) <= max(near) + 0.01


@pytest.mark.parametrize(("rule", "reach"), [("patience", r"1\.[0-9]{2}"), ("normalised_entropy", r"4\.00")])
def test_a_speed_up_out_of_reach_is_refused_with_what_is_in_reach(rule, reach):
    reaches = rf"speed-up 4\.1: exit criterion {rule} on 4 exits reaches layer speed-ups from 1 to {reach};"
    with pytest.raises(ConfigError, match=reaches):
        tradeoff(held_out(1), "accuracy", rule).at_speed_up(4.1)


@pytest.mark.parametrize("text", ["speed-up", "speed-up=x", "speed-up=0.5", "speed-up=nan", "area=1", "f1"])
def test_an_objective_that_is_none(text):
    with pytest.raises(ConfigError, match="--objective"):
        RankingObjective.of(text)


def test_a_criterion_that_is_none():
    with pytest.raises(
        ConfigError,
        match=r"--criterion softmax: exit criterion .* is not known here \(patience, entropy, .* install that package",
    ):
        RankingObjective.of("area", "softmax")


def test_a_patience_belongs_to_its_criterion():
    with pytest.raises(ConfigError, match="--patience 2: criterion 'entropy' has no parameter 'patience'"):
        RankingObjective.of("area", "entropy", 2)
    assert (
        str(RankingObjective.of("speed-up=2", "f-pabee", 3))
        == "score at layer speed-up 2 under f-pabee with patience 3"
    )
    record = held_out(0)
    assert tradeoff(record, "accuracy", "pcee", 1).fastest == pytest.approx(4)
    assert tradeoff(record, "accuracy", "pcee", 3).fastest == pytest.approx(4 / 3)
    with pytest.raises(ConfigError, match="patience 4 of pcee: this model has 4 exits"):
        tradeoff(record, "accuracy", "pcee", 4)


def flat(low: float, high: float, exits: int = 2) -> Tradeoff:
    return drawn("normalised_entropy", [1.0, float(exits)], [low, high], exits, low)


def one(name: str, algorithm: str, mean: float, folds: int = 3) -> Configuration:
    cells = tuple(Cell(0, k, "finished", (EpochScore(0, mean + k / 100),)) for k in range(folds))
    return Configuration(name, {"algorithm": algorithm, "lr_theta": 1e-4}, "complete", cells)


def test_by_another_objective_another_configuration_is_best():
    history = (one("slow", "blo", 0.8), one("fast", "slo", 0.7))
    ends = {"slow": (0.4, 0.9), "fast": (0.7, 0.75)}
    found = {(name, 0, k): flat(*ends[name]) for name in ends for k in range(3)}
    assert best(history).id == "slow"
    assert best(RankingObjective.of("area").rescored(history, found)).id == "fast"  # 0.725 against 0.65
    assert best(RankingObjective.of("speed-up=2").rescored(history, found)).id == "fast"
    assert best(RankingObjective.of("speed-up=1").rescored(history, found)).id == "slow"
    assert RankingObjective().rescored(history, {}) == history


def test_two_algorithms_are_compared_at_a_speed_up_by_hand():
    history = (one("x", "blo", 0.8), one("y", "slo", 0.7))
    lows = {"x": (0.5, 0.5, 0.5), "y": (0.51, 0.53, 0.55)}
    found = {(name, 0, k): flat(lows[name][k], 0.9) for name in lows for k in range(3)}
    rescored = RankingObjective.of("speed-up=2").rescored(history, found)
    (line,) = compare(rescored, "slo", "blo", folds=3).lines
    assert line.difference.mean == pytest.approx(0.03)
    assert line.exits == ()
    del found["x", 0, 1]
    (line,) = compare(RankingObjective.of("speed-up=2").rescored(history, found), "slo", "blo", folds=3).lines
    assert line.cells == ((0, 0), (0, 2))


curve_of = st.lists(st.integers(0, 100), min_size=4, max_size=4).map(
    lambda s: drawn("confidence", [1, 2, 3, 4], np.array(s) / 100, 4, s[0] / 100)
)


@given(st.dictionaries(st.sampled_from("abcd"), curve_of, min_size=1))
def test_nothing_lies_above_the_front_and_everything_on_it_is_somebodys(by_name):
    history = tuple(
        Configuration(name, {}, "complete", (Cell(0, 0, "finished", (EpochScore(0, 0.5),)),)) for name in by_name
    )
    front = pareto(history, {(name, 0, 0): t for name, t in by_name.items()})
    assert [p.layers for p in front] == sorted({p.layers for p in front})
    assert [p.score for p in front] == sorted({p.score for p in front})
    for name, mine in by_name.items():
        for layers, score in zip(*mean_curve([mine]), strict=True):
            reached = [p.score for p in front if p.layers <= layers]
            assert reached[-1] >= score
            assert not [p for p in front if p.configuration == name and p.layers == layers and p.score != score]


def test_logits_come_from_the_file_that_the_record_names_and_a_missing_one_is_named(tmp_path):
    record = held_out(3)
    save_held_out(tmp_path / "cells" / "c-s0-f0-0001-0001.parquet", record, np.arange(60))
    cells = {("c", 0, 0): {"held_out": "c-s0-f0-0001-0001.parquet"}, ("d", 0, 0): {"ended": "diverged"}}
    found = curves(tmp_path, cells, "accuracy", "confidence")
    assert found.keys() == {("c", 0, 0)}
    assert found["c", 0, 0].scores.tolist() == tradeoff(record, "accuracy", "confidence").scores.tolist()
    cells["c", 0, 0] = {"held_out": "../../elsewhere.parquet"}
    for read in (
        lambda: curves(tmp_path, cells, "accuracy", "confidence"),
        lambda: curves_or_none(tmp_path, cells, "accuracy"),
    ):
        with pytest.warns(UserWarning, match=r"configuration c, seed 0, fold 0: .*cells/elsewhere\.parquet is missing"):
            assert read() == {}


def test_an_option_is_named_as_it_was_given():
    with pytest.raises(ConfigError, match=r"^--speed-up 0\.5: a speed-up is a number"):
        RankingObjective.of("speed-up=0.5", option="--speed-up")


def test_rows_that_are_exactly_undecided_can_exit_at_the_first_exit_too():
    undecided = RecordedLogits(np.zeros((2, 10, 2), np.float32), np.arange(10) % 2)
    for rule in ("normalised_entropy", "entropy", "confidence"):
        assert tradeoff(undecided, "accuracy", rule).at_speed_up(2.0) == 0.5
