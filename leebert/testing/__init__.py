"""Contract tests that other packages run on their own plugins.

Example:
    A test file of a package with a method, an exit criterion and a metric::

        from leebert.testing import CriterionContract, MethodContract, MetricContract


        class TestMine(MethodContract):
            method = METHOD


        class TestMargin(CriterionContract):
            criterion = MARGIN


        class TestBalancedAccuracy(MetricContract):
            metric = BALANCED_ACCURACY

pytest runs every test of the classes in seconds: networks have three or four layers and at most 96 samples.
"""

from __future__ import annotations

from leebert.testing.criteria import CriterionContract
from leebert.testing.methods import MethodContract, ThreeExitMLP, toy_mlp, toy_rows
from leebert.testing.metrics import MetricContract

__all__ = ["CriterionContract", "MethodContract", "MetricContract", "ThreeExitMLP", "toy_mlp", "toy_rows"]
