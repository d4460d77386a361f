"""Choosing the best configuration: by cross-validated mean, never an unfinished or pruned one."""

import math
import random
import statistics
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leebert.errors import SweepError
from tune.store.history import Cell, Configuration, EpochScore
from tune.store.ranking import best, completed, one_standard_error, ranking, score

fraction = st.integers(0, 1000).map(lambda n: n / 1000)


def cell(fold, value, state="finished"):
    return Cell(0, fold, state, (EpochScore(0, value - 0.1), EpochScore(1, value), EpochScore(2, value - 0.2)))


def configuration(name, scores, state="complete"):
    return Configuration(name, {"algorithm": "blo"}, state, tuple(cell(i, s) for i, s in enumerate(scores)))


def test_score_is_mean_and_sample_deviation_of_best_epochs():
    mean, std = score(configuration("x", [0.8, 0.9, 0.7]))
    assert mean == pytest.approx(0.8)
    assert std == pytest.approx(0.1)


def test_score_of_one_cell_has_no_deviation_and_of_none_no_mean():
    assert score(configuration("x", [0.8])).mean == 0.8
    assert math.isnan(score(configuration("x", [0.8])).std)
    assert math.isnan(score(configuration("x", [])).mean)


@given(st.lists(fraction, min_size=2, max_size=10), st.randoms())
def test_score_does_not_depend_on_cell_order(scores, shuffler):
    expected = score(configuration("x", scores))
    assert expected == pytest.approx((statistics.mean(scores), statistics.stdev(scores)), abs=1e-12)
    shuffler.shuffle(scores)
    assert score(configuration("x", scores)) == expected


@given(st.lists(st.lists(fraction, min_size=3, max_size=3), min_size=1, max_size=8), st.randoms())
def test_ranking_is_sorted_whole_and_independent_of_order(table, shuffler):
    history = [configuration(f"c{i}", scores) for i, scores in enumerate(table)]
    ranked = ranking(tuple(history))
    shuffler.shuffle(history)
    assert ranking(tuple(history)) == ranked
    assert best(tuple(history)) == ranked[0].configuration
    assert len(ranked) == len(table)
    keys = [(-r.score.mean, r.configuration.id) for r in ranked]
    assert keys == sorted(keys)


def test_ties_go_to_the_smaller_id():
    assert best((configuration("b", [0.5, 0.7]), configuration("a", [0.7, 0.5]))).id == "a"


@pytest.mark.parametrize("state", ["running", "pruned", "failed"])
def test_only_complete_configurations_count(state):
    other = configuration("great", [1.0, 1.0], state)
    assert best((other, configuration("fine", [0.5, 0.5]))).id == "fine"


@pytest.mark.parametrize("state", ["running", "diverged"])
def test_every_cell_must_be_finished(state):
    broken = Configuration("great", {}, "complete", (cell(0, 1.0), cell(1, 1.0, state)))
    assert best((broken, configuration("fine", [0.5, 0.5]))).id == "fine"


def test_means_over_different_folds_are_never_compared():
    history = (configuration("lucky", [0.9]), configuration("fine", [0.9, 0.5]))
    assert [c.id for c in completed(history)] == ["fine"]


def test_none_complete_reports_where_the_others_are():
    history = (
        configuration("a", [0.5], "running"),
        configuration("b", [0.5], "pruned"),
        configuration("c", [0.5], "pruned"),
        Configuration("d", {}, "complete", (cell(0, 0.5, "diverged"),)),
    )
    with pytest.raises(SweepError, match="1 unfinished, 2 pruned, 0 failed, 1 complete, but with a diverged"):
        best(history)
    with pytest.raises(SweepError, match="none so far"):
        one_standard_error(())
    assert ranking(history) == ()


def test_one_standard_error_by_hand():
    # Best: mean 0.8, s = 0.1, four cells: one standard error is s/√4 = 0.05 (s² = 0.03/3).
    top = configuration("top", [0.65, 0.85, 0.85, 0.85])
    within, beyond = configuration("within", [0.7501] * 4), configuration("beyond", [0.7499] * 4)
    assert [r.configuration.id for r in one_standard_error((beyond, within, top))] == ["top", "within"]


def test_one_cell_has_no_standard_error():
    history = (configuration("a", [0.8]), configuration("b", [0.8]), configuration("c", [0.79]))
    assert [r.configuration.id for r in one_standard_error(history)] == ["a", "b"]


@given(st.lists(st.lists(fraction, min_size=3, max_size=3), min_size=1, max_size=8))
def test_one_standard_error_is_a_prefix_of_the_ranking(table):
    history = tuple(configuration(f"c{i}", scores) for i, scores in enumerate(table))
    near = one_standard_error(history)
    assert near
    assert near == ranking(history)[: len(near)]


def test_two_thousand_configurations_are_ranked_at_once():
    draw = random.Random(0)
    epochs = [EpochScore(e, draw.random()) for e in range(10)]
    history = tuple(
        Configuration(f"c{i}", {}, "complete", tuple(Cell(0, k, "finished", tuple(epochs)) for k in range(5)))
        for i in range(2000)
    )
    start = time.process_time()
    assert len(ranking(history)) == 2000
    assert time.process_time() - start < 1.0
