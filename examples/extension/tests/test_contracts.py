"""Every plugin meets the contract of its kind."""

from leebert_extension.balanced_accuracy import METRIC
from leebert_extension.median import PRUNER
from leebert_extension.ratio import CRITERION
from leebert_extension.shuffled import SEARCHER
from leebert_extension.sparse_slo import METHOD

from leebert.testing import CriterionContract, MethodContract, MetricContract
from tune.testing import PrunerContract, SearcherContract


class TestSparseSLO(MethodContract):
    method = METHOD


class TestRatio(CriterionContract):
    criterion = CRITERION


class TestBalancedAccuracy(MetricContract):
    metric = METRIC


class TestMedian(PrunerContract):
    pruner = PRUNER


class TestShuffled(SearcherContract):
    searcher = SEARCHER
