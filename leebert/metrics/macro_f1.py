"""Macro F1: the mean of the classes' F1, whatever their sizes."""

from __future__ import annotations

import numpy as np

from leebert.metrics.f1 import influence_of_class
from leebert.metrics.metric import Measure, Metric


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Compute the mean F1 of the classes that are labels or predicted, for (N,) class ids each."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, average="macro", zero_division=0.0))


def influence(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Compute each sample's influence on the macro F1, (N,)."""
    classes = np.union1d(labels, predicted)
    return np.asarray(np.mean([influence_of_class(int(k), labels, predicted) for k in classes], axis=0))


METRIC = Metric(
    name="macro_f1",
    title="unweighted mean of the F1 scores of all classes",
    source="scikit-learn, average='macro'",
    measures={"macro_f1": Measure(function=macro_f1, influence=influence, hub="f1")},
    label="macro F1",
)
