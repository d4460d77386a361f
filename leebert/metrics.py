"""The tasks' metrics, for every exit at once. All are fractions.

A curve takes a hundred of them, and scikit-learn checks its inputs for milliseconds each; the values are its own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def _accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    return float((labels == predicted).mean())


def _f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    if max(labels.max(), predicted.max()) > 1:
        from sklearn.metrics import f1_score

        return float(f1_score(labels, predicted, zero_division=0.0))  # says what is wrong
    positives = int(labels.sum()) + int(predicted.sum())
    return 2 * int((labels & predicted).sum()) / positives if positives else 0.0


def _macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, average="macro", zero_division=0.0))


def _matthews(labels: np.ndarray, predicted: np.ndarray) -> float:
    n, classes = len(labels), int(max(labels.max(), predicted.max())) + 1
    by_label = np.bincount(labels, minlength=classes).astype(float)
    by_prediction = np.bincount(predicted, minlength=classes).astype(float)
    covariance = float((labels == predicted).sum()) * n - by_label @ by_prediction
    variances = (float(n) ** 2 - by_prediction @ by_prediction) * (float(n) ** 2 - by_label @ by_label)
    return float(covariance / np.sqrt(variances)) if variances else 0.0


#: A task's metric → the measures that its mean (the selection score) is taken over: GLUE's, MRPC's and QQP's two.
MEASURES: dict[str, dict[str, Callable[[np.ndarray, np.ndarray], float]]] = {
    "accuracy": {"accuracy": _accuracy},
    "matthews": {"matthews": _matthews},
    "acc_f1": {"accuracy": _accuracy, "f1": _f1},
    "macro_f1": {"macro_f1": _macro_f1},
}


def measures(metric: str, labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Every measure of a metric for predictions (N,), and `score`, their mean."""
    values = {name: f(labels, predicted) for name, f in MEASURES[metric].items()}
    return {**values, "score": float(np.mean(list(values.values())))}


def per_exit(metric: str, labels: np.ndarray, logits: np.ndarray) -> dict[str, np.ndarray]:
    """Each measure and `score` for each exit: (M, N, K) logits and (N,) labels → arrays (M,)."""
    predicted = logits.argmax(axis=-1)  # (M, N)
    rows = [measures(metric, labels, p) for p in predicted]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def collapsed(logits: np.ndarray) -> np.ndarray:
    """Exits that predict one class for every row: (M, N, K) → (M,) bool."""
    predicted = logits.argmax(axis=-1)
    return (predicted == predicted[:, :1]).all(axis=1)
