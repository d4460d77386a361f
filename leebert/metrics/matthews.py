"""Matthews' correlation coefficient between labels and predictions, for any number of classes."""

from __future__ import annotations

import math

import numpy as np

from leebert.metrics.metric import Measure, Metric


def matthews(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Compute the correlation, for (N,) class ids each: between −1 and 1, and 0 for a constant prediction."""
    n, classes = len(labels), int(max(labels.max(), predicted.max())) + 1
    by_label = np.bincount(labels, minlength=classes).astype(float)
    by_prediction = np.bincount(predicted, minlength=classes).astype(float)
    covariance = float((labels == predicted).sum()) * n - by_label @ by_prediction
    variances = (float(n) ** 2 - by_prediction @ by_prediction) * (float(n) ** 2 - by_label @ by_label)
    return float(covariance / np.sqrt(variances)) if variances else 0.0


def influence(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Compute each sample's influence, (N,).

    MCC = U / √(AB) with U = cN − Σ p_k t_k, A = N² − Σ p_k², B = N² − Σ t_k² (c right, p_k predicted, t_k true).
    """
    n, right = len(labels), labels == predicted
    k = int(max(labels.max(), predicted.max())) + 1
    t, p = (np.bincount(values, minlength=k).astype(float) for values in (labels, predicted))
    a, b = n**2 - (p**2).sum(), n**2 - (t**2).sum()
    if not a * b:
        return np.zeros(n)  # the correlation of a constant prediction is 0 by definition
    c, root = right.sum(), math.sqrt(a * b)
    u = c * n - (p * t).sum()
    of_u = n * right + c - t[predicted] - p[labels]
    of_root = (n - p[predicted]) / a + (n - t[labels]) / b
    return np.asarray(n * (of_u / root - u / root * of_root))


METRIC = Metric(
    name="matthews",
    title="Matthews correlation coefficient",
    source="GLUE: CoLA",
    measures={"matthews": Measure(function=matthews, influence=influence, hub="matthews_correlation")},
    lowest=-1.0,
    label="Matthews correlation",
)
