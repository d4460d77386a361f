"""F1 of one class, used by two metrics: the harmonic mean of precision and recall."""

from __future__ import annotations

import numpy as np


def f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Compute F1 of class 1 of two classes, for (N,) class ids each; 0 if class 1 is neither a label nor predicted."""
    if max(labels.max(), predicted.max()) > 1:
        from sklearn.metrics import f1_score

        return float(f1_score(labels, predicted, zero_division=0.0))  # raises the error
    positives = int(labels.sum()) + int(predicted.sum())
    return 2 * int((labels & predicted).sum()) / positives if positives else 0.0


def influence_of_class(label: int, labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Compute each sample's influence on a class's F1 = 2a / D, with a true positives and D = 2a + errors.

    Args:
        label: The class id.
        labels: (N,) class ids.
        predicted: (N,) class ids.

    Returns:
        (N,) influences of mean 0.
    """
    true, positive = labels == label, predicted == label
    a, both = (true & positive).sum(), true.sum() + positive.sum()
    if not both:
        return np.zeros(len(labels))
    by_hit, by_error = 2 * (both - 2 * a) / both**2, -2 * a / both**2
    return np.asarray(len(labels) * np.where(true & positive, by_hit, np.where(true | positive, by_error, 0.0)))
