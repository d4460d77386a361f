"""Balanced accuracy: the mean recall over classes."""

from __future__ import annotations

import numpy as np

from leebert.metrics.metric import Measure, Metric


def balanced_accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean recall over the classes that occur in the labels; (N,) class ids each."""
    right = labels == predicted
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


METRIC = Metric(
    name="balanced_accuracy",
    title="unweighted mean of the recall of all classes",
    source="this example",
    measures={"balanced_accuracy": Measure(function=balanced_accuracy)},
    label="balanced accuracy",
)
