"""Contract tests of metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from leebert.metrics import METRICS
from leebert.metrics.metric import Metric, jackknife
from leebert.testing.rows import imports_of


class MetricContract:
    """Tests that a metric passes; a subclass sets `metric`, and pytest collects it.

    Attributes:
        metric: The metric under test.
    """

    metric: ClassVar[Metric]

    def _drawn(self, samples: int = 200) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Labels and predictions, (N,) each, for several numbers of classes and accuracies."""
        for classes in (self.metric.classes,) if self.metric.classes else (2, 3, 5):
            for share in (0.2, 0.6, 0.95):
                rng = np.random.default_rng([classes, int(100 * share)])
                labels = rng.choice(classes, samples, p=np.arange(1, classes + 1) / (classes * (classes + 1) / 2))
                yield labels, np.where(rng.random(samples) < share, labels, rng.integers(classes, size=samples))

    def test_row_is_complete(self) -> None:
        """The metric is valid and has the texts of tables."""
        METRICS.check(self.metric)
        assert self.metric.title
        assert self.metric.source

    def test_row_needs_no_torch(self) -> None:
        """The modules of its measures import without torch."""
        assert not imports_of(measure.function.__module__ for measure in self.metric.measures.values())

    def test_scores_are_fractions(self) -> None:
        """Scores lie between the lowest one and 1, and are the mean of the measures."""
        for labels, predicted in self._drawn():
            values = self.metric.measured(labels, predicted)
            assert self.metric.lowest - 1e-9 <= values["score"] <= 1 + 1e-9
            assert np.isclose(np.mean([values[name] for name in self.metric.measures]), values["score"])

    def test_perfect_predictions_score_1(self) -> None:
        """Predicting every label scores 1."""
        for labels, _ in self._drawn():
            assert np.isclose(self.metric.measured(labels, labels)["score"], 1)

    def test_order_does_not_matter(self) -> None:
        """A permutation of the samples changes no measure."""
        for labels, predicted in self._drawn():
            order = np.random.default_rng(0).permutation(len(labels))
            before, after = (
                self.metric.measured(labels, predicted),
                self.metric.measured(labels[order], predicted[order]),
            )
            assert all(np.isclose(before[name], after[name]) for name in before)

    def test_majority_is_the_best_constant_prediction(self) -> None:
        """`majority` is the best score of a constant prediction."""
        for labels, _ in self._drawn():
            label, score = self.metric.majority(labels)
            constants = {k: self.metric.measured(labels, np.full_like(labels, k))["score"] for k in np.unique(labels)}
            assert score == constants[label] == max(constants.values())

    def test_influences_are_the_derivatives(self) -> None:
        """Influences have mean 0 and agree with the jackknife."""
        for labels, predicted in self._drawn(400):
            for measure in self.metric.measures.values():
                if measure.influence is not None:
                    influences = measure.influence(labels, predicted)
                    assert abs(influences.mean()) < 1e-9
                    expected = jackknife(measure.function, labels, predicted)
                    error, size = np.linalg.norm(influences - expected), np.linalg.norm(expected)
                    assert error <= 0.05 * size + 1e-9, (
                        f"influences: norm {size:.3f} by the jackknife, off by {error:.3f}"
                    )
