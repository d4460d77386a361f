"""Exit rules on recorded logits: the paper's definitions, and what must hold for any logits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from leebert.config import ExitConfig, parse
from leebert.errors import ConfigError
from leebert.evaluate import HeldOut, replay_point
from leebert.exits import STRATEGIES, default_patience, make_strategy, replay
from leebert.report import evaluation, thresholds_of

LOGITS = arrays(
    np.float32, st.tuples(st.integers(2, 8), st.integers(1, 12), st.integers(2, 4)), elements=st.floats(-6, 6, width=32)
)


def strategy(name, threshold, logits):
    return make_strategy(name, threshold, num_exits=logits.shape[0], num_classes=logits.shape[2])


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
    assert replay(make_strategy("patience", patience, num_exits=6, num_classes=3), of_classes(*classes))[0] + 1 == layer


def test_entropy_is_in_nats_and_the_normalised_one_lies_between_0_and_1():
    p = torch.tensor([0.9, 0.1])
    z = p.log()[None]
    entropy = -(p * p.log()).sum().item()
    assert entropy == pytest.approx(0.3251, abs=1e-4)
    for name, factor in (("entropy", 1.0), ("normalised_entropy", 1 / math.log(2))):
        for shift, leaves in ((1e-4, True), (-1e-4, False)):
            rule = make_strategy(name, entropy * factor + shift, num_exits=3, num_classes=2)
            assert rule.step(z, None)[0].tolist() == [leaves]


def test_confidence_includes_its_threshold():
    z = torch.tensor([[0.0, 0.0]])
    assert make_strategy("confidence", 0.5, num_exits=3, num_classes=2).step(z, None)[0].all()


@given(LOGITS)
def test_more_demanding_thresholds_never_leave_earlier(logits):
    for name, order in (
        ("patience", [1, 2, 3, 4]),
        ("entropy", [1.0, 0.6, 0.3, 0.0]),
        ("confidence", [0.3, 0.6, 0.9, 1.0]),
    ):
        exits = [replay(strategy(name, t, logits), logits) for t in order]
        assert all((a <= b).all() for a, b in zip(exits, exits[1:], strict=False))


@given(LOGITS)
def test_never_runs_every_layer_and_every_rule_stays_in_range(logits):
    m, n, _ = logits.shape
    assert (replay(strategy("never", None, logits), logits) == m - 1).all()
    for name in STRATEGIES:
        where = replay(strategy(name, None if name in ("never", "patience") else 0.5, logits), logits)
        assert where.shape == (n,)
        assert ((where >= 0) & (where < m)).all()


@given(LOGITS)
def test_rows_do_not_see_each_other(logits):
    for name, t in (("patience", 2), ("entropy", 0.5), ("confidence", 0.7)):
        together = replay(strategy(name, t, logits), logits)
        alone = [replay(strategy(name, t, logits), logits[:, i : i + 1])[0] for i in range(logits.shape[1])]
        assert together.tolist() == alone


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
        ("patients", 1, "strategy"),
    ],
)
def test_a_threshold_out_of_range_is_refused(name, threshold, message):
    with pytest.raises(ConfigError, match=message):
        parse(ExitConfig, {"strategy": name, "threshold": threshold}, "--strategy")


def test_a_point_reports_layers_speed_up_and_where_rows_left():
    logits = np.concatenate([of_classes(0, 0, 0, 0), of_classes(0, 1, 2, 1)], axis=1)
    point = replay_point(HeldOut(logits, np.array([0, 1])), "accuracy", "patience", 1.0)
    assert point.exits == (0, 1, 0, 1)
    assert point.layers == 3.0
    assert point.speed_up == pytest.approx(4 / 3)
    assert point.measures["accuracy"] == 1.0


def test_an_evaluation_holds_all_exits_and_every_threshold():
    rng = np.random.default_rng(0)
    result = evaluation(HeldOut(rng.normal(size=(6, 50, 2)).astype(np.float32), rng.integers(0, 2, 50)), "acc_f1")
    assert [p["threshold"] for p in result["curves"]["patience"]] == [1, 2, 3, 4, 5]
    assert len(result["curves"]["entropy"]) == len(result["curves"]["confidence"]) == 20
    assert result["mean_over_exits"] == pytest.approx(np.mean(result["exits"]["score"]))
    assert max(thresholds_of("entropy", 20, 6, 3)) == pytest.approx(math.log(3))
