"""The mean of accuracy and F1 of class 1, for tasks of two classes of unequal size."""

from __future__ import annotations

import numpy as np

from leebert.metrics.accuracy import MEASURE
from leebert.metrics.f1 import f1, influence_of_class
from leebert.metrics.metric import Measure, Metric


def influence(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Compute each sample's influence on class 1's F1, (N,)."""
    return influence_of_class(1, labels, predicted)


METRIC = Metric(
    name="acc_f1",
    title="mean of accuracy and F1 of class 1",
    source="GLUE: MRPC, QQP",
    measures={"accuracy": MEASURE, "f1": Measure(function=f1, influence=influence, hub="f1")},
    classes=2,
    label="mean of accuracy and F1",
)
