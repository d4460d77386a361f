"""The paired comparison: who is paired with whom, what is counted, what is dropped, and what is said."""

import dataclasses
import io
import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leebert.errors import ConfigError
from leebert.points import in_points
from tune.analysis.compare import compare, line_verdict
from tune.analysis.compare_text import render, rows, sentences
from tune.analysis.power import Spread, detectable, power_for, power_of, seeds_needed
from tune.analysis.stats import Interval, corrected_t, random_effects, sign_flip
from tune.analysis.wording import verdict
from tune.store.history import Cell, Configuration, EpochScore

RATES = (1e-5, 1e-4)
CYCLES = (2, 4)
FOLDS = 3
fraction = st.integers(0, 1000).map(lambda n: n / 1000)


def cell(seed, fold, score, state="finished", exits=2):
    """A cell whose best epoch (of two) has this score, and exits around it."""
    values = tuple(score + 0.01 * (m - (exits - 1) / 2) for m in range(exits))
    return Cell(seed, fold, state, (EpochScore(0, score, values), EpochScore(1, score - 0.05, values)))


def configuration(values, scores, state="complete", states=None):
    """`scores` per fold; `states` per fold where they aren't all finished."""
    states = states or ["finished"] * len(scores)
    cells = tuple(cell(0, k, s, t) for k, (s, t) in enumerate(zip(scores, states, strict=True)))
    return Configuration("-".join(map(str, values.values())), values, state, cells)


def grid():
    """Every effective configuration of BLO and CLO-v2 on two rates and, for CLO-v2, two cycle lengths."""
    for rate in RATES:
        yield {"algorithm": "blo", "lr_theta": rate}
        for cycle in CYCLES:
            yield {"algorithm": "clo-v2", "lr_theta": rate, "cycle_length": cycle}


def history_of(score=lambda values, fold: 0.5):
    return tuple(configuration(v, [score(v, k) for k in range(FOLDS)]) for v in grid())


@st.composite
def histories(draw):
    """The grid with any scores, states and missing cells; at least one pair is complete in every comparison."""
    history = []
    for values in grid():
        first = values["lr_theta"] == RATES[0]
        scores = [draw(fraction) for _ in range(FOLDS)]
        states = ["finished" if first else draw(st.sampled_from(["finished", "running", "diverged"])) for _ in scores]
        config = configuration(values, scores, states=states)
        if not first:
            reached = draw(st.integers(0, FOLDS))
            state = draw(st.sampled_from(["running", "complete", "pruned", "failed"]))
            config = dataclasses.replace(config, state=state, cells=config.cells[:reached])
        history.append(config)
    return tuple(history)


def test_by_hand():
    a, b = [0.80, 0.84, 0.85], [0.79, 0.81, 0.80]
    history = (configuration({"algorithm": "slo", "x": 1}, a), configuration({"algorithm": "blo", "x": 1}, b))
    comparison = compare(history, "slo", "blo", folds=3)
    (line,) = comparison.lines
    expected = corrected_t([0.01, 0.03, 0.05], 1 / 2)
    for field in ("mean", "low", "high", "p"):
        assert getattr(line.difference, field) == pytest.approx(getattr(expected, field))
    assert line.sign_flip_p == sign_flip([0.01, 0.03, 0.05]) == 0.25
    assert [exit.mean for exit in line.exits] == pytest.approx([0.03, 0.03])
    assert line.exits[0].p == pytest.approx(2 * expected.p)
    assert (len(line.paired), len(line.cells), line.planned, line.dropped, line.unpaired) == (1, 3, 3, {}, (0, 0))
    assert line.p_folds is None, "one seed"
    sentence = line_verdict(line, comparison.test_train_ratio)
    expected = "SLO and BLO: +3.00 points in validation score, 3 runs each: too few for an interval (at least 4)"
    assert sentence == expected
    assert comparison.warnings == ()


def test_each_value_of_a_one_sided_option_is_its_own_comparison_with_the_same_partner():
    # A pair's difference is 0.1 x C on every rate; were C averaged over, 0.3 would appear.
    noise = {(rate, k): 0.001 * i for i, (rate, k) in enumerate((r, k) for r in RATES for k in range(FOLDS))}
    history = history_of(
        lambda v, k: 0.2 + noise[v["lr_theta"], k] * v.get("cycle_length", 1) + 0.1 * v.get("cycle_length", 0)
    )
    lines = compare(history, "clo-v2", "blo", folds=3).lines
    assert [line.a for line in lines] == ["CLO-v2 (C=2)", "CLO-v2 (C=4)"]
    assert [line.b for line in lines] == ["BLO", "BLO"]
    assert [len(line.paired) for line in lines] == [2, 2]
    assert [line.difference.cells for line in lines] == [FOLDS, FOLDS]
    extra = sum(noise.values()) / 6
    assert [line.difference.mean for line in lines] == pytest.approx([0.2 + extra, 0.4 + 3 * extra])
    assert "2 comparisons share runs" in "\n".join(sentences(compare(history, "clo-v2", "blo", folds=3)))


def test_where_picks_one_value_on_the_side_that_uses_it():
    comparison = compare(history_of(), "clo-v2", "blo", folds=3, where={"cycle_length": "4"})
    assert [line.a_only for line in comparison.lines] == [{"cycle_length": 4}]
    assert comparison.where == {"cycle_length": 4}
    (line, _) = compare(history_of(), "clo-v2", "blo", folds=3, where={"lr_theta": "1e-5"}).lines
    assert len(line.paired) == 1


def test_any_option_can_be_compared_and_values_given_as_text():
    comparison = compare(
        history_of(lambda v, k: 10 * v["lr_theta"] * (k + 1)), "1e-4", "1e-5", option="lr_theta", folds=3
    )
    (line,) = comparison.lines
    assert (comparison.a, comparison.b) == (1e-4, 1e-5)
    assert len(line.paired) == 3  # BLO, and CLO-v2 with each C: each with itself at the other rate
    assert line.difference.mean == pytest.approx(2 * 10 * 9e-5)
    (line,) = compare(history_of(), 2, 4, option="cycle_length", folds=3).lines
    assert len(line.paired) == 2
    (line,) = compare(history_of(), 1e-4, 1e-5, option="lr_theta", folds=3, where={"cycle_length": 4}).lines
    assert len(line.paired) == 1  # BLO has no C, so it isn't "C = 4"


@settings(max_examples=40)
@given(histories())
def test_swapping_sides_mirrors_everything(history):
    forth, back = compare(history, "clo-v2", "blo", folds=3), compare(history, "blo", "clo-v2", folds=3)
    assert len(forth.lines) == len(back.lines) == len(CYCLES)

    def mirrored(one, other):
        assert one.mean == -other.mean
        assert one.p == pytest.approx(other.p, nan_ok=True)
        assert one.low == pytest.approx(-other.high, nan_ok=True)

    for one, other in zip(forth.lines, back.lines, strict=True):
        mirrored(one.difference, other.difference)
        for exit_one, exit_other in zip(one.exits, other.exits, strict=True):
            mirrored(exit_one, exit_other)
        assert one.sign_flip_p == other.sign_flip_p
        assert (one.a, one.a_only, one.dropped) == (other.b, other.b_only, other.dropped)
        assert one.unpaired == other.unpaired[::-1]
        assert (line_verdict(one, 0.5) == line_verdict(other, 0.5)) == ("better" in line_verdict(one, 0.5))
    if forth.tuned is not None:
        mirrored(forth.tuned.difference, back.tuned.difference)
    assert forth.warnings == back.warnings


@settings(max_examples=30)
@given(histories(), st.randoms())
def test_the_order_of_the_history_changes_nothing(history, shuffler):
    expected = compare(history, "clo-v2", "blo", folds=3).as_dict()
    shuffled = [dataclasses.replace(c, cells=tuple(shuffler.sample(c.cells, len(c.cells)))) for c in history]
    shuffler.shuffle(shuffled)
    assert compare(tuple(shuffled), "clo-v2", "blo", folds=3).as_dict() == expected


@settings(max_examples=40)
@given(histories())
def test_every_cell_of_a_line_rests_on_the_same_complete_pairs(history):
    """Recounted from the definition: the pairs that are complete on all cells, else the most runs that can be paired."""
    by_id = {c.id: c for c in history}
    by_values = {(c.values["algorithm"], c.values["lr_theta"], c.values.get("cycle_length")): c for c in history}
    cells = {(k.seed, k.fold) for c in history for k in c.cells}

    def finished(c):
        return {(k.seed, k.fold): k.best.score for k in c.cells if k.state == "finished"}

    for cycle, line in zip(CYCLES, compare(history, "clo-v2", "blo", folds=3).lines, strict=True):
        assert line.planned == len(cells)
        assert len(line.paired) + sum(line.dropped.values()) == len(RATES)
        pairs = [(finished(by_id[a]), finished(by_id[b])) for a, b in line.paired]
        means = [sum(a[key] - b[key] for a, b in pairs) / len(pairs) for key in line.cells]
        assert line.difference.mean == pytest.approx(sum(means) / len(means), abs=1e-9)
        assert line.difference.cells == len(line.cells)
        shared = [finished(by_values["clo-v2", r, cycle]).keys() & finished(by_values["blo", r, None]) for r in RATES]
        assert len(line.paired) == sum(set(line.cells) <= mine for mine in shared)
        whole = [mine for mine in shared if mine == cells]
        if whole:
            assert set(line.cells) == cells
        else:
            runs = len(line.paired) * len(line.cells)
            subsets = [{key for key in cells if bits >> i & 1} for bits in range(8) for i, key in enumerate(cells)]
            assert runs == max(len(some) * sum(some <= mine for mine in shared) for some in subsets)


def test_a_pair_that_was_pruned_after_one_fold_changes_no_cell():
    # The first pair is 1 ahead on every fold, the second 3 behind on the only one that it has.
    history = (
        configuration({"algorithm": "slo", "lr": 1}, [0.6, 0.6, 0.6]),
        configuration({"algorithm": "blo", "lr": 1}, [0.5, 0.5, 0.5]),
        configuration({"algorithm": "slo", "lr": 2}, [0.2], "pruned"),
        configuration({"algorithm": "blo", "lr": 2}, [0.5, 0.5, 0.5]),
    )
    (line,) = compare(history, "slo", "blo", folds=3).lines
    assert (line.difference.mean, line.difference.cells) == (pytest.approx(0.1), 3)
    assert line.paired == (("slo-1", "blo-1"),)
    assert line.dropped == {"pruned": 1}


def test_while_no_pair_is_complete_the_most_runs_that_are_paired_count():
    def side(algorithm, rate, cells):
        return configuration({"algorithm": algorithm, "lr": rate}, [0.5 + 0.1 * rate] * cells, "running")

    history = (side("slo", 1, 2), side("slo", 2, 2), side("slo", 3, 1), *(side("blo", r, 3) for r in (1, 2, 3)))
    comparison = compare(history, "slo", "blo", folds=3)
    (line,) = comparison.lines
    assert line.cells == ((0, 0), (0, 1)), "2 cells of 2 pairs are more than 1 cell of 3"
    assert (line.paired, line.dropped) == ((("slo-1", "blo-1"), ("slo-2", "blo-2")), {"unfinished": 1})
    assert any("SLO against BLO covers 2 of 3 runs" in warning for warning in comparison.warnings)
    (line,) = compare(history, "slo", "blo", folds=3, cells=[(s, k) for s in range(2) for k in range(3)]).lines
    assert (len(line.cells), line.planned) == (2, 6)


@settings(max_examples=30)
@given(histories(), fraction)
def test_runs_outside_complete_pairs_have_no_influence(history, score):
    """A finished cell whose partner isn't there could have any score."""
    values = {"algorithm": "blo", "lr_theta": 1e-3}
    lone = (*history, configuration(values, [score] * FOLDS, state="failed"))
    before, after = (compare(h, "clo-v2", "blo", folds=3).as_dict()["lines"] for h in (history, lone))
    for line in after:
        assert line.pop("unpaired") == [0, 1]
    assert [{key: value for key, value in line.items() if key != "unpaired"} for line in before] == after


def test_dropped_pairs_are_counted_by_reason():
    def side(algorithm, rate, scores, state, states):
        return configuration({"algorithm": algorithm, "lr": rate}, scores, state, states)

    whole = [0.5, 0.6, 0.7]
    done = ["finished"] * 3
    history = (
        side("slo", 1, whole, "complete", done),
        side("blo", 1, [0.4, 0.6, 0.5], "complete", done),
        side("slo", 2, whole, "complete", done),
        side("blo", 2, whole, "failed", ["finished", "diverged", "running"]),
        side("slo", 3, [0.1, 0.1], "pruned", ["finished", "running"]),
        side("blo", 3, [0.1, 0.2], "running", ["finished", "running"]),
        side("slo", 4, whole, "complete", done),
        side("blo", 4, [0.1], "running", ["running"]),
    )
    comparison = compare(history, "slo", "blo", folds=3)
    (line,) = comparison.lines
    assert line.dropped == {"diverged": 1, "pruned": 1, "unfinished": 1}, "of two reasons the first counts"
    said = sentences(comparison)
    assert "  complete pairs of configurations: 1; dropped: 3 (1 diverged, 1 pruned, 1 unfinished)" in said[1]
    pruned, running = comparison.warnings
    assert "pruned (1 configuration(s), 1 of them" in pruned
    assert "unfinished (4 configurations completed, 2 on these" in running


def test_an_unfinished_combination_is_omitted_with_a_warning():
    history = [c for c in history_of() if c.values.get("cycle_length") != 2]
    history.append(Configuration("new", {"algorithm": "clo-v2", "lr_theta": 1e-5, "cycle_length": 2}))
    comparison = compare(tuple(history), "clo-v2", "blo", folds=3)
    assert [line.a_only for line in comparison.lines] == [{"cycle_length": 4}]
    assert any("not compared" in w and "C=2" in w for w in comparison.warnings)


def test_a_sweep_that_was_stopped_between_two_configurations_is_unfinished_too():
    assert compare(history_of(), "clo-v2", "blo", folds=3, planned=6).warnings == ()
    (warning,) = compare(history_of(), "clo-v2", "blo", folds=3, planned=8).warnings
    assert warning.startswith("this sweep is unfinished (6 of 8 configurations completed")


def test_the_sides_and_pairs_are_handed_on_after_where():
    comparison = compare(history_of(), "clo-v2", "blo", folds=3, where={"cycle_length": 4})
    assert comparison.sides == (("clo-v2-0.0001-4", "clo-v2-1e-05-4"), ("blo-0.0001", "blo-1e-05"))
    assert set(comparison.lines[0].paired) == set(zip(*comparison.sides, strict=True))


# Tuned against tuned


def test_tuned_choice_does_not_see_the_fold_it_is_scored_on():
    # With all cells, "flash" has the higher mean thanks to fold 0 alone: (1 + .5 + .5)/3 > .6. Without fold 0 it loses.
    flash = configuration({"algorithm": "slo", "lr": 1}, [1.0, 0.5, 0.5])
    steady = configuration({"algorithm": "slo", "lr": 2}, [0.6, 0.6, 0.6])
    partner = configuration({"algorithm": "blo", "lr": 1}, [0.5, 0.5, 0.5])
    tuned = compare((flash, steady, partner), "slo", "blo", folds=3).tuned
    assert [c.a for c in tuned.choices] == [steady.id, flash.id, flash.id]
    assert [c.difference for c in tuned.choices] == pytest.approx([0.1, 0.0, 0.0])
    peeking = (1.0 - 0.5 + 0.0 + 0.0) / 3
    assert tuned.difference.mean == pytest.approx(0.1 / 3) != pytest.approx(peeking)
    assert tuned.difference.cells == 3


@settings(max_examples=30)
@given(st.lists(fraction, min_size=36, max_size=36), st.integers(0, FOLDS - 1), st.data())
def test_no_score_of_a_fold_changes_the_choices_for_its_cells(scores, fold, data):
    """With two seeds: the other seed of the fold shares its rows, so it isn't asked either."""

    def tuned(values):
        table = iter(values)
        history = []
        for v in grid():
            cells = tuple(cell(s, k, next(table)) for s in range(2) for k in range(FOLDS))
            history.append(Configuration("-".join(map(str, v.values())), v, "complete", cells))
        return compare(tuple(history), "clo-v2", "blo", folds=3).tuned

    changed = [data.draw(fraction) if i % FOLDS == fold else s for i, s in enumerate(scores)]
    before, after = tuned(scores), tuned(changed)
    assert [(c.seed, c.fold) for c in before.choices] == [(s, k) for s in range(2) for k in range(FOLDS)]
    picked = [[(c.a, c.b) for c in t.choices if c.fold == fold] for t in (before, after)]
    assert picked[0] == picked[1]
    assert picked[0][0] == picked[0][1], "both seeds of a fold are chosen for by the same runs"


def test_tuned_takes_only_complete_configurations():
    history = list(history_of(lambda v, k: 0.5 + 0.01 * k))
    history[1] = dataclasses.replace(history[1], state="pruned", cells=history[1].cells[:1])
    history[2] = configuration(history[2].values, [0.9] * 3, states=["finished", "diverged", "finished"])
    tuned = compare(tuple(history), "clo-v2", "blo", folds=3).tuned
    assert not {c.a for c in tuned.choices} & {history[1].id, history[2].id}


def test_tuned_reports_how_many_each_side_chose_from():
    comparison = compare(history_of(lambda v, k: 0.5 + 0.01 * k), "clo-v2", "blo", folds=3)
    assert comparison.tuned.candidates == (4, 2)
    assert "  tuned: selected on the other folds from 4 configurations of CLO-v2 and 2 of BLO" in sentences(comparison)


def test_tuned_needs_two_folds_whatever_the_seeds():
    history = tuple(
        Configuration(str(i), v, "complete", tuple(cell(s, 0, 0.5 + 0.01 * s) for s in range(3)))
        for i, v in enumerate(grid())
    )
    comparison = compare(history, "clo-v2", "blo", folds=1, test_train_ratio=0.1)
    assert comparison.tuned is None
    assert any("no comparison 'tuned': it needs two folds" in w for w in comparison.warnings)


def test_one_cell_has_no_spread():
    history = tuple(configuration(v, [0.5]) for v in grid())
    comparison = compare(history, "clo-v2", "blo", folds=1, test_train_ratio=0.1)
    assert comparison.tuned is None
    assert any("no comparison 'tuned'" in w for w in comparison.warnings)
    assert not comparison.lines[0].difference.defined
    assert "1 run each: too few for an interval" in line_verdict(comparison.lines[0], 0.5)


# Seeds within folds


def test_the_seeds_of_a_fold_do_not_narrow_an_interval_that_the_folds_decide():
    def side(algorithm, shifts):
        cells = tuple(
            cell(s, k, 0.5 + shift + 0.0001 * s * (k + 1)) for s in range(3) for k, shift in enumerate(shifts)
        )
        return Configuration(algorithm, {"algorithm": algorithm}, "complete", cells)

    def line(*shifts):
        history = (side("slo", shifts), side("blo", [0.0] * len(shifts)))
        history = (
            history[0],
            dataclasses.replace(history[1], cells=tuple(cell(s, k, 0.5) for s in range(3) for k in range(3))),
        )
        return compare(history, "slo", "blo", folds=3).lines[0]

    apart = line(0.02, 0.05, 0.03)
    means = [shift + 0.0001 * (k + 1) for k, shift in enumerate((0.02, 0.05, 0.03))]
    assert apart.p_folds == apart.difference.p == pytest.approx(corrected_t(means, 1 / 2).p)
    assert line_verdict(apart, 0.5).startswith("SLO and BLO: no significant difference in validation score: +3.")
    alike = line(0.03, 0.0305, 0.0295)
    assert alike.difference.p < 0.05
    assert line_verdict(alike, 0.5).startswith("SLO is better than BLO in validation score: +3.")


# Settings and errors


def test_seeds_and_folds_are_both_cells_and_the_ratio_comes_from_the_folds():
    def many(algorithm, shift):
        cells = tuple(cell(s, k, 0.5 + shift * (1 + s + k)) for s in range(3) for k in range(2))
        return Configuration(algorithm, {"algorithm": algorithm}, "complete", cells)

    history = (many("slo", 0.01), many("blo", 0.0))
    comparison = compare(history, "slo", "blo", folds=2)
    folds = [np.mean([0.01 * (1 + s + k) for s in range(3)]) for k in range(2)]
    assert comparison.test_train_ratio == 1.0
    assert comparison.lines[0].difference.high == pytest.approx(corrected_t(folds, 1.0).high)
    assert "2 folds are too few for an interval (at least 3)" in line_verdict(comparison.lines[0], 1.0)
    narrow = compare(history, "slo", "blo", folds=2, test_train_ratio=0.1)
    assert narrow.lines[0].difference.high < comparison.lines[0].difference.high


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        (
            "clo-v2",
            "bloo",
            {},
            r"no configuration with 'bloo' has begun \(did you mean 'blo'\?\); the sweep has blo, clo-v2",
        ),
        ("blo", "blo", {}, "both sides are 'blo'"),
        ("1e-4", 0.0001, {"option": "lr_theta"}, "both sides are"),
        ("blo", "slo", {"option": "algoritm"}, r"no such option in this sweep \(did you mean 'algorithm'\?\)"),
        ("clo-v2", "blo", {"where": {"cycle_lenght": 4}}, "did you mean 'cycle_length'"),
        ("clo-v2", "blo", {"where": {"cycle_length": 5}}, "no configuration with 5 has begun; the sweep has 2, 4"),
        ("clo-v2", "blo", {"where": {"algorithm": "blo"}}, "this option is compared"),
        ("clo-v2", "blo", {"folds": 1}, "give test_train_ratio"),
    ],
)
def test_errors_name_the_value_and_the_nearest(a, b, options, message):
    with pytest.raises(ConfigError, match=message):
        compare(history_of(), a, b, **{"folds": 3, **options})


def test_where_on_an_option_that_neither_side_uses():
    history = (*history_of(), configuration({"algorithm": "uniform", "lr_theta": 1e-5}, [0.5] * 3))
    with pytest.raises(ConfigError, match="neither algorithm uniform nor blo uses it"):
        compare(history, "uniform", "blo", folds=3, where={"cycle_length": 4})
    mixed = (*history, configuration({"algorithm": "slo", "lr_theta": 1e-3}, [0.5] * 3))
    with pytest.raises(ConfigError, match=r"no configuration of algorithm blo has lr_theta 0\.001"):
        compare(mixed, "slo", "blo", folds=3, where={"lr_theta": 1e-3})


def test_nothing_in_common():
    def pair(left, right, rate=1):
        blo = {"algorithm": "blo", "lr": rate}
        return Configuration("a", {"algorithm": "slo", "lr": 1}, cells=left), Configuration("b", blo, cells=right)

    here, there, open_ = (cell(0, 0, 0.5),), (cell(0, 1, 0.5),), (cell(0, 0, 0.5, "running"),)
    with pytest.raises(ConfigError, match=r"no configuration in common \(the same lr\)"):
        compare(pair(here, here, rate=2), "slo", "blo", folds=2)
    with pytest.raises(ConfigError, match=r"no \(seed, fold\) in common"):
        compare(pair(here, there), "slo", "blo", folds=2)
    with pytest.raises(ConfigError, match="1 and 0 runs are finished"):
        compare(pair(here, open_), "slo", "blo", folds=2)


def test_the_same_values_twice_are_refused():
    twin = dataclasses.replace(history_of()[0], id="twin")
    with pytest.raises(ConfigError, match="have the same values"):
        compare((*history_of(), twin), "clo-v2", "blo", folds=3)


# Words and output


OPEN, BETTER = "A and B: no significant difference in validation score", "A is better than B in validation score"
NAN = math.nan


@pytest.mark.parametrize(
    ("interval", "sentence"),
    [
        (Interval(0.003, -0.005, 0.011, 0.4, 12), f"{OPEN}: +0.30 points, 95 % CI −0.50 to 1.10, 12 runs each"),
        (Interval(-0.003, -0.011, 0.005, 0.4, 12), f"{OPEN}: −0.30 points, 95 % CI −1.10 to 0.50, 12 runs each"),
        (Interval(0.02, 0.01, 0.03, 0.001, 5), f"{BETTER}: +2.00 points, 95 % CI 1.00 to 3.00, 5 runs each"),
        (Interval(0.02, 0.001, 0.039, 0.07, 5, 0.9), f"{BETTER}: +2.00 points, 90 % CI 0.10 to 3.90, 5 runs each"),
        (
            Interval(-1e-9, NAN, NAN, NAN, 1),
            "A and B: +0.00 points in validation score, 1 run each: too few for an interval (at least 4)",
        ),
        (
            Interval(0.02, 0.01, 0.03, 0.001, 3),
            "A and B: +2.00 points in validation score, 3 runs each: too few for an interval (at least 4)",
        ),
        (
            Interval(0.01, NAN, NAN, NAN, 4),
            "A and B: +1.00 points in validation score, 4 runs each; every run shows the same difference, so there is no "
            "interval",
        ),
    ],
)
def test_verdict(interval, sentence):
    assert verdict("A", "B", interval) == sentence


@pytest.mark.parametrize(("effect", "runs"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_runs_needed_are_those_of_the_paired_t_test_in_the_tables(effect, runs):
    """Cohen's effect size d = δ/s at 80 % power and α = 0.05, two-sided (Cohen 1988; G*Power prints these numbers)."""
    assert seeds_needed(Spread(0, 0, 1.0, 1), 1, 0.0, effect) == runs


def test_no_number_of_runs_detects_a_difference_below_the_shared_variance():
    # At infinitely many runs the standard error is √0.25, and the power of a difference of it times 2.80 is 80 %.
    assert seeds_needed(Spread(0, 0, 1.0, 1), 1, 0.25, 1.35, most=5000) is None
    assert seeds_needed(Spread(0, 0, 1.0, 1), 1, 0.25, 1.402, most=20000) > 1000


def test_more_seeds_average_out_the_variance_of_seeds_alone():
    """Known without v: K - 1 degrees of freedom, standard error √((τ² + σ²/S)·(1/K + n_test/n_train))."""
    spread = Spread(0.0, 4e-6, 12e-6, 3)
    power = power_for(spread, 3, 0.01, runs=9)
    assert power.floor == pytest.approx(detectable(Spread(0, 4e-6, 0, 3), 3, 1, 0.5), rel=1e-4)
    assert power.detectable == pytest.approx(power.floor * math.sqrt(2), rel=1e-4)
    assert [plan.folds for plan in power.plans] == [3], "without v, other numbers of folds are not derived"
    more = power_for(Spread(1e-5, 4e-6, 12e-6, 3), 3, 0.01, runs=9)
    assert [plan.folds for plan in more.plans] == [3, 5, 10, 20]
    assert power_for(Spread(0.0, 4e-6, 0.0, 3, apart=False), 3, 0.01, runs=9).floor is None


@pytest.mark.parametrize("spread", [Spread(1e-4, 0, 0, 5), Spread(1e-4, 1e-4, 0, 5), Spread(1e-4, 5e-5, 1e-4, 5)])
def test_the_power_is_that_of_the_test_which_is_used(spread):
    """Simulated comparisons of the detectable difference are significant in 80 % of cases."""
    rng, draws, ratio = np.random.default_rng(0), 300, 1 / 4
    shift = detectable(spread, 5, 2, ratio)
    v, rest = spread.on(5, 2)
    # The mean of folds varies by √(v/5 + rest·(1/5 + ratio)), their spread by v + rest.
    common = rng.normal(size=(draws, 1)) * math.sqrt(rest * ratio)
    folds = shift + common + math.sqrt(v + rest) * rng.normal(size=(draws, 5))
    found = [random_effects({(0, k): d for k, d in enumerate(row)}, ratio, sampling=v).significant for row in folds]
    assert np.mean(found) == pytest.approx(0.8, abs=0.07)


def test_a_comparison_that_does_not_detect_its_interval_never_says_that_its_runs_are_enough():
    """Known: the detectable difference is wider than the half-width where the variance is the expected one."""
    diffs = {(s, k): 0.002 * (-1) ** s + 0.01 * (k - 2) for s in range(2) for k in range(5)}
    for v in (0.0, 1e-5, 1e-4):
        interval = random_effects(diffs, 1 / 4, sampling=v)
        half = (interval.high - interval.low) / 2
        assert power_of(interval, 1 / 4, half).detectable > half


@given(st.floats(0.001, 0.1), st.floats(0.001, 0.1), st.integers(3, 20))
@settings(max_examples=25, deadline=None)
def test_a_larger_difference_never_needs_more_seeds(difference, std, folds):
    ratio = 1 / (folds - 1)
    small, large = (
        seeds_needed(Spread(0, 0, std**2, folds), folds, ratio, d) or math.inf for d in (difference, 1.5 * difference)
    )
    assert large <= small


@pytest.mark.parametrize(
    ("std", "difference", "sentence"),
    [
        (0.02, 0.01, "about 34 runs would be needed to detect 1 point"),
        (0.02, 0.0036, "about 245 runs would be needed to detect 0.36 points"),
        (0.01, 0.01, "these runs are enough to detect 1 point"),
    ],
)
def test_a_verdict_states_how_many_runs_would_be_enough(std, difference, sentence):
    diffs = np.resize([1.0, -1.0], 12) * std * np.sqrt(11 / 12)
    interval = corrected_t(diffs.tolist(), 0.0)
    assert verdict("A", "B", interval, power=power_of(interval, 0.0, difference)).endswith(
        f", 12 runs each; {sentence}"
    )


def test_verdict_turns_round_where_b_is_better():
    better = Interval(-0.02, -0.03, -0.01, 0.001, 5)
    assert (
        verdict("A", "B", better)
        == "B is better than A in validation score: +2.00 points, 95 % CI 1.00 to 3.00, 5 runs each"
    )


@given(histories())
@settings(max_examples=25)
def test_dict_is_strict_json_without_nan(history):
    comparison = compare(history, "clo-v2", "blo", folds=3)
    assert json.loads(json.dumps(comparison.as_dict(), allow_nan=False)) == comparison.as_dict()


def test_unknown_numbers_are_none():
    line = compare(history_of(), "clo-v2", "blo", folds=3).as_dict()["lines"][0]
    numbers = {
        "mean": 0.0,
        "low": None,
        "high": None,
        "p": None,
        "cells": 3,
        "confidence": 0.95,
        "std": None,
        "folds": 3,
        "sampling": 0.0,
        "between": 0.0,
        "within": None,
    }
    assert line["difference"] == numbers
    assert line["sign_flip_p"] == 1.0


def test_the_table_holds_every_row_and_the_sentences():
    from rich.console import Console

    draw = random.Random(0)
    comparison = compare(history_of(lambda v, k: draw.random()), "clo-v2", "blo", folds=3)
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render(rows(comparison)))
    table = console.export_text()
    assert len(rows(comparison)) == 1 + 3 * (1 + 2) + 1
    for shown in ("CLO-v2 − BLO", "only C=2", "exit 2†", "tuned against tuned"):
        assert shown in table
    assert "fewer than 4 runs are too few for an interval and its p" in sentences(comparison)
    assert not any(sentence.startswith("† p adjusted by Holm") for sentence in sentences(comparison)), "none is shown"
    for line in comparison.lines:
        assert line_verdict(line, comparison.test_train_ratio) in sentences(comparison)
        assert in_points(line.difference.mean) in table


def test_missing_exits_leave_only_the_mean():
    history = tuple(
        dataclasses.replace(c, cells=tuple(dataclasses.replace(k, epochs=(EpochScore(0, 0.5),)) for k in c.cells))
        for c in history_of()
    )
    assert compare(history, "clo-v2", "blo", folds=3).lines[0].exits == ()
