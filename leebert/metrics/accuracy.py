"""Accuracy: the share of samples whose class is predicted."""

from __future__ import annotations

import numpy as np

from leebert.metrics.metric import Measure, Metric


def accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Compute the share of correct predictions, for (N,) class ids each."""
    return float((labels == predicted).mean())


def influence(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Compute each sample's influence on the accuracy, (N,)."""
    right = labels == predicted
    return np.asarray(right - right.mean())


MEASURE = Measure(function=accuracy, influence=influence, hub="accuracy")

METRIC = Metric(
    name="accuracy",
    title="share of samples that are classified correctly",
    source="GLUE: MNLI, QNLI, RTE, SST-2",
    measures={"accuracy": MEASURE},
)
