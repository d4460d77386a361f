"""The contracts of exit criteria and metrics, over all built-in ones."""

import contextlib
import dataclasses

import pytest

from leebert.errors import ConfigError
from leebert.exits import CRITERIA
from leebert.methods import METHODS
from leebert.metrics import METRICS
from leebert.testing import CriterionContract, MethodContract, MetricContract
from leebert.testing.rows import imports_of, registered
from tune.pruners import PRUNERS
from tune.testing import PrunerContract

# One process for all of them, below.
_SHARED = {"test_row_needs_no_torch": None}

for _name, _criterion in CRITERIA.items():
    globals()[f"TestCriterion_{_name}"] = type("Contract", (CriterionContract,), {"criterion": _criterion, **_SHARED})
for _name, _metric in METRICS.items():
    globals()[f"TestMetric_{_name}"] = type("Contract", (MetricContract,), {"metric": _metric, **_SHARED})


def test_no_row_needs_torch():
    criteria = [row.make.__module__ for row in CRITERIA.values()]
    metrics = [measure.function.__module__ for metric in METRICS.values() for measure in metric.measures.values()]
    assert not imports_of([*criteria, *metrics, "leebert.config", "leebert.exits.checks"])


class _TopThree:
    """A criterion that assumes three classes."""

    def __init__(self, threshold):
        self.threshold = threshold

    def measure(self, logits, state):
        return logits.float().softmax(-1).topk(3).values[:, 0], None

    def step(self, logits, state):
        return self.measure(logits, state)[0] >= self.threshold, None


def _broken():
    """Yield a plugin with a fault of its kind, as an instance of its contract, and the test that must fail."""
    top = dataclasses.replace(
        CRITERIA["confidence"], name="top-three", make=lambda threshold, patience, classes: _TopThree(threshold)
    )
    contract = CriterionContract()
    contract.criterion = top
    yield "two classes", contract.available, lambda: contract.test_stricter_thresholds_exit_later(2, 2)
    yield "torch alone", contract.available, lambda: contract.test_numpy_arrays_give_the_same_exits(5, 3)

    accuracy = METRICS["accuracy"].measures["accuracy"]
    wide = dataclasses.replace(
        accuracy, influence=lambda labels, predicted: 1.1 * accuracy.influence(labels, predicted)
    )
    metric = MetricContract()
    metric.metric = dataclasses.replace(METRICS["accuracy"], measures={"accuracy": wide})
    yield "intervals 10 % too wide", contextlib.nullcontext, metric.test_influences_are_the_derivatives

    for fault, change, test in (
        ("not on D1", {"omega_on_d1": False}, "test_omega_learns_from_d1_if_its_row_declares_it"),
        (
            "other costs",
            {"costs": METHODS["blo"].costs},
            "test_its_costs_count_its_forward_and_backward_passes",
        ),
    ):
        method = MethodContract()
        method.method = dataclasses.replace(METHODS["clo-v1"], name="copy", **change)
        yield fault, method.available, getattr(method, test)

    pruner = PrunerContract()
    pruner.pruner = dataclasses.replace(PRUNERS["halving"], name="eager", make=lambda spec, options: _FirstEpoch())
    yield (
        "a run without a report",
        lambda: registered(PRUNERS, pruner.pruner),
        pruner.test_decisions_depend_on_the_history_alone,
    )


class _FirstEpoch:
    """A pruner that reads the first report of every configuration, also of those that have none."""

    def decide(self, history, config, cell, epoch):
        return min(c.cells[0].epochs[0].score for c in history) >= 0


@pytest.mark.parametrize("case", list(_broken()), ids=lambda case: case[0])
def test_contracts_refuse_a_broken_plugin(case):
    _, available, test = case
    with available(), pytest.raises((AssertionError, ConfigError, IndexError, RuntimeError)):
        test()
