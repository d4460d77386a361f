"""Exit rules on recorded logits: the paper's definitions, and what must hold for any logits."""

import dataclasses
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from leebert.config import ExitConfig, parse
from leebert.errors import ConfigError
from leebert.evaluate import RecordedLogits
from leebert.exits import CRITERIA, usable, with_threshold
from leebert.exits.checks import check_threshold, warn_if_unreachable
from leebert.exits.criterion import check_fits
from leebert.exits.patience import default_patience
from leebert.exits.replay import make_criterion, measured, replay
from leebert.report import evaluation
from leebert.tradeoff import replay_point

LOGITS = arrays(
    np.float32, st.tuples(st.integers(2, 8), st.integers(1, 12), st.integers(2, 4)), elements=st.floats(-6, 6, width=32)
)


WITH_PATIENCE = [name for name, rule in with_threshold().items() if rule.patience]


def strategy(name, threshold, logits, patience=None):
    return make_criterion(name, threshold, patience, num_exits=logits.shape[0], num_classes=logits.shape[2])


def of_probabilities(*p):
    """(M, 1, 2) logits of two classes, the first of which has these probabilities."""
    p = np.array(p)
    return np.log(np.stack([p, 1 - p], axis=-1)).astype(np.float32)[:, None, :]


def leaves_at(logits, name, threshold, patience=None):
    """Where each row leaves, from 1."""
    return (replay(strategy(name, threshold, logits, patience), logits) + 1).tolist()


def of_classes(*classes):
    """(M, 1, 3) logits that predict these classes."""
    return np.eye(3, dtype=np.float32)[list(classes)][:, None, :]


@pytest.mark.parametrize(
    ("classes", "patience", "layer"),
    [
        ((0, 0, 0, 0, 0, 0), 4, 5),  # p = 4 leaves at exit 5 at the earliest
        ((0, 0, 0, 0, 0, 0), 1, 2),
        ((0, 1, 1, 1, 0, 0), 2, 4),
        ((0, 1, 0, 1, 0, 1), 1, 6),  # never reached: the last exit answers
        ((1, 1, 0, 0, 0, 1), 2, 5),  # a disagreement sets the counter back to 0
    ],
)
def test_patience_counts_agreement_with_the_exit_before(classes, patience, layer):
    assert (
        replay(make_criterion("patience", patience, num_exits=6, num_classes=3), of_classes(*classes))[0] + 1 == layer
    )


def test_entropy_is_in_nats_and_the_normalised_one_lies_between_0_and_1():
    p = torch.tensor([0.9, 0.1])
    z = p.log()[None]
    entropy = -(p * p.log()).sum().item()
    assert entropy == pytest.approx(0.3251, abs=1e-4)
    for name, factor in (("entropy", 1.0), ("normalised_entropy", 1 / math.log(2))):
        for shift, leaves in ((1e-4, True), (-1e-4, False)):
            rule = make_criterion(name, entropy * factor + shift, num_exits=3, num_classes=2)
            assert rule.step(z, None)[0].tolist() == [leaves]


def test_confidence_includes_its_threshold():
    z = torch.tensor([[0.0, 0.0]])
    assert make_criterion("confidence", 0.5, num_exits=3, num_classes=2).step(z, None)[0].all()


# The normalised entropies of 0.9 and 0.6 are 0.469 and 0.971.
@pytest.mark.parametrize(
    ("certain", "threshold", "patience", "layer"),
    [
        ((0.9, 0.9, 0.9, 0.9), 0.5, 1, 1),
        ((0.9, 0.9, 0.9, 0.9), 0.5, 2, 2),  # the exit at which the count is full answers
        ((0.9, 0.1, 0.9, 0.9), 0.5, 2, 2),  # which class it is doesn't count
        ((0.9, 0.6, 0.9, 0.9, 0.9), 0.5, 2, 4),  # an uncertain exit sets the counter back to 0
        ((0.9, 0.6, 0.9, 0.6), 0.5, 2, 4),  # never reached: the last exit answers
        ((0.9, 0.9, 0.9, 0.9), 0.46, 1, 4),
    ],
)
def test_pcee_counts_exits_that_are_certain(certain, threshold, patience, layer):
    assert leaves_at(of_probabilities(*certain), "pcee", threshold, patience) == [layer]


@given(LOGITS, st.floats(0, 1))
def test_pcee_at_patience_1_is_the_normalised_entropy(logits, threshold):
    assert leaves_at(logits, "pcee", threshold, 1) == leaves_at(logits, "normalised_entropy", threshold)


def jensen_shannon(p, q):
    """Of two classes, by the definition: the mean of the divergences from the middle."""
    divergence = 0.0
    for a, b in ((p, q), (1 - p, 1 - q)):
        divergence += a / 2 * math.log(2 * a / (a + b)) + b / 2 * math.log(2 * b / (a + b))
    return divergence


@pytest.mark.parametrize(
    ("certain", "patience", "layer"),
    [
        ((0.9, 0.9, 0.9, 0.9), 1, 2),  # nothing to compare with at the first exit
        ((0.9, 0.9, 0.9, 0.9), 2, 3),
        ((0.6, 0.9, 0.9, 0.9), 1, 3),  # the same class is not enough
        ((0.55, 0.45, 0.9, 0.9), 1, 2),  # nor is it needed
        ((0.9, 0.9, 0.6, 0.6, 0.6, 0.6), 2, 5),  # a jump sets the counter back to 0
        ((0.9, 0.6, 0.9, 0.6), 1, 4),  # never reached: the last exit answers
    ],
)
def test_f_pabee_counts_exits_that_change_little(certain, patience, layer):
    assert jensen_shannon(0.55, 0.45) < 0.03 < jensen_shannon(0.9, 0.6)
    assert leaves_at(of_probabilities(*certain), "f-pabee", 0.03, patience) == [layer]


def test_f_pabee_compares_by_the_jensen_shannon_divergence():
    values = measured(strategy("f-pabee", 0.1, np.zeros((4, 1, 2))), of_probabilities(0.9, 0.6, 0.6, 1e-30))
    assert values[0] == math.inf
    assert values[1:3, 0] == pytest.approx([jensen_shannon(0.9, 0.6), 0], abs=1e-6)
    apart = measured(strategy("f-pabee", 0.1, np.zeros((2, 1, 2))), 200 * np.eye(2, dtype=np.float32)[:, None, :])
    assert apart[1, 0] == pytest.approx(math.log(2))


# Weights 0, 0.4, 0.8, 1.2: four exits that agree with probability 0.9 score 0, 0.36, 1.08, 2.16.
@pytest.mark.parametrize(
    ("certain", "threshold", "layer"),
    [
        ((0.9, 0.9, 0.9, 0.9, 0.9), 0.35, 2),
        ((0.9, 0.9, 0.9, 0.9, 0.9), 0.37, 3),
        ((0.9, 0.9, 0.9, 0.9, 0.9), 1.07, 3),
        ((0.9, 0.9, 0.9, 0.9, 0.9), 1.09, 4),
        ((0.9, 0.9, 0.9, 0.9, 0.9), 2.17, 5),
        ((0.9, 0.9, 0.2, 0.2, 0.2), 0.63, 3),  # after a disagreement the exit's own 0.8 · 0.8 is left
        ((0.9, 0.9, 0.2, 0.2, 0.2), 0.65, 4),
        ((0.9, 0.9, 0.2, 0.2, 0.2), 1.61, 5),  # 0.64 + 1.2 · 0.8 = 1.6
    ],
)
def test_beem_adds_up_weighted_confidence_while_exits_agree(certain, threshold, layer):
    assert leaves_at(of_probabilities(*certain), "beem", threshold) == [layer]


@given(LOGITS)
def test_beem_scores_lie_between_0_and_what_certain_exits_that_agree_score(logits):
    scores = measured(strategy("beem", 1.0, logits), logits)
    for number, at_exit in enumerate(scores, start=1):
        assert (at_exit >= 0).all()
        assert (at_exit <= 0.2 * number * (number - 1) + 1e-5).all()


@given(LOGITS, st.sampled_from(WITH_PATIENCE), st.floats(0, 0.69))
def test_more_patience_never_exits_earlier_and_no_sample_exits_before_the_first_exit_that_can(logits, name, threshold):
    exits = [leaves_at(logits, name, threshold, p) for p in (1, 2, 3)]
    assert all(a <= b for lax, strict in zip(exits, exits[1:], strict=False) for a, b in zip(lax, strict, strict=True))
    for patience, where in zip((1, 2, 3), exits, strict=True):
        assert min(where) >= min(CRITERIA[name].first(patience), len(logits))


@given(LOGITS)
def test_never_runs_every_layer_and_every_criterion_stays_in_range(logits):
    m, n, _ = logits.shape
    assert (replay(strategy("never", None, logits), logits) == m - 1).all()
    for name in CRITERIA:
        where = replay(strategy(name, None if name in ("never", "patience") else 0.5, logits), logits)
        assert where.shape == (n,)
        assert ((where >= 0) & (where < m)).all()


@pytest.mark.parametrize(("exits", "patience"), [(12, 4), (6, 2), (24, 8), (2, 1)])
def test_default_patience_is_a_third_of_the_exits(exits, patience):
    assert default_patience(exits) == patience


@pytest.mark.parametrize(
    ("name", "threshold", "message"),
    [
        ("patience", 0, "whole number of at least 1"),
        ("patience", 1.5, "whole number of at least 1"),
        ("confidence", 1.2, "between 0 and 1"),
        ("normalised_entropy", -0.1, "between 0 and 1"),
        ("entropy", -1, "at least 0"),
        ("entropy", None, "needs a threshold"),
        ("pcee", 1.1, "between 0 and 1, not 1.1"),
        ("f-pabee", 0.7, "between 0 and ln 2 = 0.6931, not 0.7"),
        ("f-pabee", None, "needs a threshold"),
        ("beem", 0, "above 0"),
        ("never", 0.5, "'never' has no threshold"),
        ("patients", 1, "criterion"),
    ],
)
def test_a_threshold_out_of_range_is_refused(name, threshold, message):
    with pytest.raises(ConfigError, match=message):
        parse(ExitConfig, {"criterion": name, "threshold": threshold}, "--criterion")


@pytest.mark.parametrize(
    ("name", "threshold", "patience", "message"),
    [
        ("pcee", 0.5, 0, "patience: .* greater than or equal to 1"),
        ("entropy", 0.5, 2, "'entropy' has no parameter 'patience': pcee and f-pabee have one"),
        ("never", None, 2, "'never' has no parameter 'patience'"),
        ("patience", None, 2, "'patience' has no parameter 'patience': its threshold is the patience"),
    ],
)
def test_a_parameter_that_a_criterion_lacks_is_refused(name, threshold, patience, message):
    with pytest.raises(ConfigError, match=message):
        parse(ExitConfig, {"criterion": name, "threshold": threshold, "patience": patience}, "--criterion")


@pytest.mark.parametrize(
    ("given", "exits", "message"),
    [
        ({"criterion": "patience"}, 1, "'patience' compares successive exits, and this model has one exit: use never"),
        ({"criterion": "pcee", "threshold": 0.5}, 1, "use never, or one of entropy, normalised_entropy, confidence"),
        ({"criterion": "f-pabee", "threshold": 0.5}, 1, "this model has one exit"),
        ({"criterion": "beem", "threshold": 0.5}, 1, "this model has one exit"),
        ({"criterion": "pcee", "threshold": 0.5, "patience": 4}, 4, "patience 4 of pcee: .* between 1 and 3"),
        ({"criterion": "f-pabee", "threshold": 0.5, "patience": 9}, 4, "patience 9 of f-pabee: .* between 1 and 3"),
        ({"criterion": "beem", "threshold": 2.5}, 4, r"between 0 and 2\.4 \(with 4 exits\), not 2\.5"),
        ({"criterion": "patience", "threshold": 4}, 4, "patience lies between 1 and 3"),
        ({"criterion": "entropy", "threshold": 0.9}, 4, "ln 2 = 0.6931, not 0.9 .did you mean normalised_entropy"),
    ],
)
def test_a_criterion_that_a_model_has_no_use_for_is_refused(given, exits, message):
    with pytest.raises(ConfigError, match=message):
        check_threshold(ExitConfig(**given), exits, 2)


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        ({"criterion": "patience", "threshold": 3}, "patience 3 can't be reached"),
        ({"criterion": "f-pabee", "threshold": 0.5, "patience": 3}, "patience 3 of f-pabee can't be reached"),
        ({"criterion": "beem", "threshold": 1.3}, "beem 1.3 can't be reached"),
        ({"criterion": "patience", "threshold": 2}, None),
        ({"criterion": "f-pabee", "threshold": 0.5, "patience": 2}, None),
        ({"criterion": "pcee", "threshold": 0.5, "patience": 3}, None),
        ({"criterion": "beem", "threshold": 1.2}, None),
    ],
)
def test_what_no_row_can_meet_before_the_last_of_four_exits_is_warned_about(given, warned):
    exits = ExitConfig(**given)
    sure = np.tile(np.array([200, 0], np.float32), (4, 1, 1))
    leaves = leaves_at(sure, exits.criterion, exits.threshold, exits.patience)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warn_if_unreachable(exits, 4)
    assert [str(w.message).partition(" before")[0] for w in said] == ([warned] if warned else [])
    assert (leaves == [4]) == bool(warned)


def test_the_table_has_every_criterion_and_the_defaults_suit_every_model():
    assert set(CRITERIA) == {*with_threshold(), "never"}
    for exits in range(2, 30):
        for name in WITH_PATIENCE:
            assert 1 <= CRITERIA[name].counted(None, exits) < exits
    assert [CRITERIA[name].counted(None, 12) for name in WITH_PATIENCE] == [2, 2]
    assert [rule.name for rule in usable(1)] == ["entropy", "confidence"]


def test_a_criterion_without_a_threshold_has_no_span_no_default_and_no_patience():
    never = CRITERIA["never"]
    assert never.bounds(12, 2) == (0.0, 0.0)
    check_fits(never)
    for more in ({"default": lambda m: 1.0}, {"patience": lambda m: 1}):
        with pytest.raises(ValueError, match="without a span has no threshold"):
            check_fits(dataclasses.replace(never, **more))


def test_a_point_reports_layers_speed_up_and_where_samples_exit():
    logits = np.concatenate([of_classes(0, 0, 0, 0), of_classes(0, 1, 2, 1)], axis=1)
    point = replay_point(RecordedLogits(logits, np.array([0, 1])), "accuracy", "patience", 1.0)
    assert point.exits == (0, 1, 0, 1)
    assert point.layers == 3.0
    assert point.speed_up == pytest.approx(4 / 3)
    assert point.measures["accuracy"] == 1.0


def test_an_evaluation_holds_all_exits_and_every_criterion_in_steps_of_layers():
    rng = np.random.default_rng(0)
    recorded = RecordedLogits(rng.normal(size=(6, 200, 2)).astype(np.float32), rng.integers(0, 2, 200))
    result = evaluation(recorded, "acc_f1")
    assert [p["threshold"] for p in result["table"]["patience"]] == [1, 2, 3, 4, 5]
    criteria = {"patience", "entropy", "confidence", "pcee", "f-pabee", "beem"}
    assert all(set(result[part]) == criteria for part in ("curves", "table", "within", "at_speed_up"))
    for name, first in {"entropy": 1, "confidence": 1, "pcee": 2, "f-pabee": 2, "beem": 2}.items():
        layers = [p["layers"] for p in result["table"][name]]
        assert layers == pytest.approx(np.arange(first, 6.1, 0.5), abs=0.1)
        assert result["at_speed_up"][name]["speed_up"] == pytest.approx(2.0, rel=0.01)
        enough = [p for p in result["curves"][name] if p["measures"]["score"] >= result["exits"]["score"][-1] - 0.01]
        assert result["within"][name] == min(enough, key=lambda p: p["layers"])
    assert {p["patience"] for p in result["curves"]["pcee"]} == {2}
    assert result["mean_over_exits"] == pytest.approx(np.mean(result["exits"]["score"]))


def test_a_model_with_one_exit_is_evaluated_by_the_criteria_that_it_has_a_use_for():
    rng = np.random.default_rng(0)
    result = evaluation(
        RecordedLogits(rng.normal(size=(1, 50, 2)).astype(np.float32), rng.integers(0, 2, 50)), "accuracy"
    )
    assert set(result["curves"]) == {"entropy", "confidence"}


def test_recorded_logits_may_be_read_only():
    logits = np.zeros((3, 2, 2), np.float32)
    logits.flags.writeable = False
    rule = make_criterion("patience", 1, num_exits=3, num_classes=2)
    assert replay(rule, logits).tolist() == [1, 1]


@pytest.mark.parametrize("rule", with_threshold())
def test_criteria_refuse_the_single_output_of_a_regression(rule):
    asked = ExitConfig(criterion=rule, threshold=1 if CRITERIA[rule].whole else 0.5)
    with pytest.raises(
        ConfigError, match=f"criterion '{rule}' compares classes, and this model has one output per exit"
    ):
        check_threshold(asked, 4, 1)
    check_threshold(ExitConfig(criterion="never"), 4, 1)
