"""The contracts of exit criteria and metrics, over all built-in ones."""

from leebert.exits import CRITERIA
from leebert.metrics import METRICS
from leebert.testing import CriterionContract, MetricContract
from leebert.testing.rows import imports_of

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
