"""Balanced accuracy: the mean over classes of the share of their samples that are predicted."""

from __future__ import annotations

import numpy as np

from leebert.metrics.metric import Measure, Metric


def balanced_accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """The mean recall of the classes that occur, for (N,) class ids each."""
    right = labels == predicted
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


METRIC = Metric(
    name="balanced_accuracy",
    title="unweighted mean of the recall of all classes",
    source="this example",
    measures={"balanced_accuracy": Measure(function=balanced_accuracy)},
    label="balanced accuracy",
)
