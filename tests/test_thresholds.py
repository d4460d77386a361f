"""Which threshold gives a speed-up: on recorded logits, for every rule."""

import json
import math

import numpy as np
import pytest

from leebert.config import ExitConfig
from leebert.errors import ConfigError
from leebert.evaluate import RecordedLogits
from leebert.exits import CRITERIA, with_threshold
from leebert.exits.checks import check_threshold
from leebert.operating_point import saved_tradeoffs
from leebert.thresholds import (
    FILE,
    check_speed_up,
    choose,
    curves,
    layer_speed_up,
    look_up,
    read_curves,
    rows_needed,
    speed_up_interval,
)

M = 6


def recorded(rows=800, classes=3, seed=0):
    """Exits that grow surer with depth, each row at its own pace."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    pace = rng.gamma(2.0, 0.5, rows)
    logits = rng.normal(size=(M, rows, classes))
    logits[:, np.arange(rows), labels] += np.arange(1, M + 1)[:, None] * pace
    return RecordedLogits(logits.astype(np.float32), labels)


@pytest.fixture(scope="module")
def held_out():
    return recorded()


@pytest.mark.parametrize("rule", ["entropy", "normalised_entropy", "confidence"])
@pytest.mark.parametrize("asked", [1, 1.2, 1.95, 2, 3.5, M])
def test_a_speed_up_is_hit(held_out, rule, asked):
    chosen = choose(held_out, rule, asked)
    assert chosen.reached == pytest.approx(asked, rel=0.01)
    assert chosen.reached == layer_speed_up(held_out, rule, chosen.threshold)
    assert chosen.near


def test_the_layer_ratio_by_hand():
    logits = np.zeros((2, 4, 2), np.float32)
    logits[0, :3, 0] = 9  # three of four rows leave at the first of two exits
    assert layer_speed_up(RecordedLogits(logits, np.zeros(4, int)), "confidence", 0.9) == 2 / (5 / 4)


@pytest.mark.parametrize("asked", [1, 1.3, 1.95, 3, 5])
def test_patience_takes_the_nearest_that_it_attains(held_out, asked):
    chosen = choose(held_out, "patience", asked)
    all_ = {p: layer_speed_up(held_out, "patience", p) for p in range(1, M)}
    assert abs(math.log(chosen.reached / asked)) == min(abs(math.log(s / asked)) for s in all_.values())
    assert all_[chosen.threshold] == chosen.reached
    assert chosen.near == (abs(chosen.reached / asked - 1) <= 0.05)


def test_rows_that_are_all_alike_have_no_speed_up_between():
    alike = RecordedLogits(np.tile(np.array([0.5, 0.0], np.float32), (M, 10, 1)), np.zeros(10, int))
    chosen = choose(alike, "entropy", 2)
    assert chosen.reached in (1, M)
    assert not chosen.near


@pytest.mark.parametrize("asked", [0.9, 0, -2, M + 0.1, math.inf, math.nan])
def test_what_no_row_can_do_is_refused(held_out, asked):
    for wrong in (lambda: check_speed_up(asked, range(1, M + 1), M), lambda: choose(held_out, "entropy", asked)):
        with pytest.raises(ConfigError, match=r"speed-up .*: should lie between 1 .* and 6"):
            wrong()


def test_what_can_be_asked_is_bounded_by_the_layers_below_the_first_and_the_last_exit(held_out):
    """Two exits, after layers 2 and 12 of 12."""
    sparse = RecordedLogits(held_out.logits[[1, 5]], held_out.labels, (2, 12), 12)
    for rule in ("entropy", "confidence"):
        for asked in (1, 2, 3, 6):
            chosen = choose(sparse, rule, asked)
            assert chosen.reached == pytest.approx(asked, rel=0.01)
            low, high = speed_up_interval(sparse, rule, chosen.threshold)
            assert 1 <= low <= chosen.reached <= high <= 6
    with pytest.raises(ConfigError, match=r"speed-up 7: should lie between 1 \(all layers\) and 6 \(2 of 12 layers\)"):
        choose(sparse, "entropy", 7)
    shallow = RecordedLogits(held_out.logits[[1, 5]], held_out.labels, (2, 6), 12)
    assert choose(shallow, "entropy", 2).reached == 2
    with pytest.raises(
        ConfigError, match=r"speed-up 1.5: should lie between 2 \(6 of 12 layers\) and 6 \(2 of 12 layers\)"
    ):
        choose(shallow, "entropy", 1.5)
    # Of rows that run through 2 or 12 layers, 4 on average, a fifth is late.
    assert rows_needed(3, (2, 12), 12) == math.ceil((1.96 / 0.4) ** 2 * 10**2 * 0.2 * 0.8)


def test_the_ends_hold_for_rows_that_are_as_sure_or_unsure_as_float32_can_hold():
    logits = np.zeros((M, 40, 3), np.float32)
    logits[:, :20, 0] = 200  # of probability 1 after rounding; the others know nothing
    extreme = RecordedLogits(logits, np.zeros(40, int))
    for rule in ("entropy", "normalised_entropy", "confidence"):
        assert choose(extreme, rule, M).reached == M
    for classes in range(2, 40):
        clueless = RecordedLogits(np.zeros((2, 1, classes), np.float32), np.zeros(1, int))
        for rule in ("entropy", "normalised_entropy", "confidence"):
            chosen = choose(clueless, rule, 2)
            assert chosen.reached == 2
            check_threshold(ExitConfig(criterion=rule, threshold=chosen.threshold), 2, classes)


def test_never_has_no_threshold(held_out):
    with pytest.raises(ConfigError, match="'never' gives a speed-up; use one of patience, entropy"):
        choose(held_out, "never", 2)


#: A rule, a patience, and the greatest speed-up of six exits under them.
COMPARING = [
    ("pcee", 1, 6),
    ("pcee", 2, 3),
    ("pcee", 5, 1.2),
    ("f-pabee", 1, 3),
    ("f-pabee", 3, 1.5),
    ("beem", None, 3),
]


@pytest.mark.parametrize(("rule", "patience", "most"), COMPARING)
def test_criteria_that_compare_exits_hit_a_speed_up_up_to_their_own_greatest(held_out, rule, patience, most):
    for asked in (1, (1 + most) / 2, 0.98 * most):
        chosen = choose(held_out, rule, asked, patience)
        assert chosen.reached == pytest.approx(asked, rel=0.02)
        assert chosen.reached == layer_speed_up(held_out, rule, chosen.threshold, patience)
        check_threshold(chosen.exits, M, 3)
    for asked in {0.5 * (most + M), M}:
        chosen = choose(held_out, rule, asked, patience)
        assert chosen.reached == pytest.approx(most)
        assert not chosen.missed(most)
        check_threshold(chosen.exits, M, 3)
        if not chosen.near:
            assert f"since samples exit together, none before exit {M / most:g}: the nearest is" in chosen.shortfall


def test_the_ends_hold_for_rows_that_are_certain_clueless_or_torn_under_criteria_that_compare_exits():
    logits = np.zeros((M, 60, 3), np.float32)
    logits[:, :20, 0] = 200
    logits[0::2, 20:40, 1] = logits[1::2, 20:40, 2] = 200  # another class at each exit, and certain of it
    extreme = RecordedLogits(logits, np.zeros(60, int))
    for rule, patience, most in COMPARING:
        assert choose(extreme, rule, 1, patience).reached == 1
        assert choose(extreme, rule, M, patience).reached == pytest.approx(most)


def test_a_criterion_is_refused_where_it_has_no_such_patience_or_nothing_to_compare(held_out):
    with pytest.raises(ConfigError, match="patience 6 of pcee: this model has 6 exits, so it lies between 1 and 5"):
        choose(held_out, "pcee", 2, 6)
    with pytest.raises(ConfigError, match="'beem' has no parameter 'patience'"):
        choose(held_out, "beem", 2, 3)
    with pytest.raises(ConfigError, match="'beem' compares successive exits, and this model has one exit"):
        choose(RecordedLogits(held_out.logits[:1], held_out.labels), "beem", 1)
    assert set(curves(RecordedLogits(held_out.logits[:1], held_out.labels))) == {
        "entropy",
        "normalised_entropy",
        "confidence",
    }


def test_a_patience_has_a_curve_of_its_own(held_out):
    found = curves(held_out, 3)
    assert {"pcee, patience 2", "pcee, patience 3", "f-pabee, patience 1", "f-pabee, patience 3"} <= set(found)
    for rule, patience, asked in (("pcee", 2, 2.2), ("pcee", 3, 1.7), ("f-pabee", 3, 1.3), ("beem", None, 2.2)):
        chosen = look_up(found, rule, asked, patience)
        assert chosen.reached == pytest.approx(asked, rel=0.021)
        assert layer_speed_up(held_out, rule, chosen.threshold, patience) == pytest.approx(chosen.reached)
    with pytest.raises(ConfigError, match="'pcee, patience 4' .it has pcee, patience 2; pcee, patience 3"):
        look_up(found, "pcee", 2, 4)


@pytest.mark.parametrize(
    ("name", "threshold", "shown"),
    [("entropy", 0.8, "between 0 and ln 2 = 0.69"), ("patience", 5, "this model has 4 exits"), ("beem", -1, "above 0")],
)
def test_a_saved_threshold_outside_its_criterions_range_is_refused(tmp_path, name, threshold, shown):
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "no", "1": "yes"}}))
    (tmp_path / FILE).write_text(json.dumps({"num_exits": 4, "curves": {name: [[threshold, 2.0]]}}))
    with pytest.raises(ConfigError) as error:
        read_curves(tmp_path)
    for part in (str(tmp_path / FILE), f"curves.{name}: ", f"{threshold:g}", shown):
        assert part in str(error.value)


def test_curves_of_a_criterion_that_is_not_installed_are_kept(held_out, tmp_path):
    """A model is served without the package of a criterion that it does not use; asked for, the criterion is named."""
    saved = {"num_exits": M, "curves": {**curves(held_out), "ratio": [[0.2, 2.0], [0.5, 1.3]]}}
    (tmp_path / FILE).write_text(json.dumps(saved))
    read = read_curves(tmp_path)
    assert read["ratio"] == saved["curves"]["ratio"]
    assert look_up(read, "entropy", 2.0).near
    assert {curve.criterion for curve in saved_tradeoffs(read, range(1, M + 1), M)} <= set(CRITERIA)
    with pytest.raises(
        ConfigError, match="exit criterion 'ratio' is not known here .* if a package brings 'ratio', install"
    ):
        look_up(read, "ratio", 2.0)


def test_curves_find_any_speed_up_again(held_out, tmp_path):
    (tmp_path / FILE).write_text(json.dumps({"curves": curves(held_out)}))
    read = read_curves(tmp_path)
    assert set(read) == {"pcee, patience 2", "f-pabee, patience 1", *with_threshold()} - {"pcee", "f-pabee"}
    for rule in ("entropy", "normalised_entropy", "confidence"):
        thresholds = [t for t, _ in read[rule]]
        assert thresholds == sorted(thresholds)
        assert len(thresholds) < 500
        for asked in (1, 1.37, 2, 4.2, M):
            found = look_up(read, rule, asked)
            assert found.reached == pytest.approx(asked, rel=0.021)
            assert layer_speed_up(held_out, rule, found.threshold) == pytest.approx(found.reached)
    assert read_curves(tmp_path / "none") == {}
    with pytest.raises(ConfigError, match="no curve of the exit criterion 'patience'"):
        look_up({}, "patience", 2)
