"""The tasks' metrics, one file each, and their values for every exit at once. All are fractions.

A curve takes a hundred of them, and scikit-learn checks its inputs for milliseconds each; the values are its own. Another
package adds a metric by an entry point of the group ``leebert.metrics`` or by ``METRICS.register(metric)``.
"""

from __future__ import annotations

import numpy as np

from leebert.metrics.metric import Metric, check_fits
from leebert.plugins import Registry

#: Built-in metrics and the modules of this package that define them.
METRICS: Registry[Metric] = Registry(
    "metric",
    "leebert.metrics",
    "leebert.metrics",
    "METRIC",
    {
        "accuracy": "accuracy",
        "matthews": "matthews",
        "acc_f1": "acc_f1",
        "macro_f1": "macro_f1",
    },
    Metric,
    check_fits,
)


def measures(metric: str, labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Compute every measure of a metric, and `score`, their mean.

    Args:
        metric: Name of the metric.
        labels: (N,) class ids.
        predicted: (N,) class ids.

    Returns:
        Fractions by the measures' names.
    """
    return METRICS[metric].measured(labels, predicted)


def per_exit(metric: str, labels: np.ndarray, logits: np.ndarray) -> dict[str, np.ndarray]:
    """Compute each measure, and `score`, of each exit.

    Args:
        metric: Name of the metric.
        labels: (N,) class ids.
        logits: (M, N, K) of all exits.

    Returns:
        (M,) fractions by the measures' names.
    """
    predicted = logits.argmax(axis=-1)  # (M, N)
    rows = [measures(metric, labels, p) for p in predicted]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def collapsed(logits: np.ndarray) -> np.ndarray:
    """Mark the exits that predict a single class for all samples, (M,) bool, from logits (M, N, K)."""
    predicted = logits.argmax(axis=-1)
    same: np.ndarray = (predicted == predicted[:, :1]).all(axis=1)
    return same
