"""Contract tests that other packages run on their own parts.

Example:
    A test file of a package with an exit criterion and a metric of its own::

        from leebert.testing import CriterionContract, MetricContract

        class TestMargin(CriterionContract):
            criterion = MARGIN

        class TestBalancedAccuracy(MetricContract):
            metric = BALANCED_ACCURACY
"""

from __future__ import annotations

from leebert.testing.criteria import CriterionContract
from leebert.testing.metrics import MetricContract

__all__ = ["CriterionContract", "MetricContract"]
