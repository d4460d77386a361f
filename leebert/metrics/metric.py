"""A task's metric as data: the measures whose mean is the score, their influences, and the majority class's score."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from leebert.plugin_checks import check_name, check_types

#: From the labels and the predictions of N samples, (N,) class ids each.
Function = Callable[[np.ndarray, np.ndarray], float]
Influence = Callable[[np.ndarray, np.ndarray], np.ndarray]


def jackknife(function: Function, labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Estimate each sample's influence on a measure by omitting one sample.

    Args:
        function: The measure; it depends only on the counts of pairs of label and prediction.
        labels: (N,) class ids, N of at least 2.
        predicted: (N,) class ids.

    Returns:
        (N,) influences of mean 0; exact for a mean over samples, else off by terms of order 1 / N.
    """
    whole, influences = function(labels, predicted), np.empty(len(labels))
    pairs, pair_of = np.unique(np.stack([labels, predicted]), axis=1, return_inverse=True)
    for number in range(pairs.shape[1]):
        equal = np.flatnonzero(pair_of == number)
        remaining = np.arange(len(labels)) != equal[0]
        influences[equal] = (len(labels) - 1) * (whole - function(labels[remaining], predicted[remaining]))
    influences -= influences.mean()
    return influences


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """One number for predictions, a fraction of at most 1.

    Attributes:
        function: The number.
        influence: Each sample's influence on it, (N,): N times the derivative by the sample's count in the confusion matrix.
            Its mean is 0 and its standard error is the measure's. None: estimated by :func:`jackknife`.
        hub: The measure's name in a model card's results; empty: it does not appear there.
    """

    function: Function
    influence: Influence | None = None
    hub: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A task's metric. Its score, by which configurations are selected, is the mean of its measures.

    Attributes:
        name: Its name in declarations of tasks.
        title: One line for tables.
        source: Who uses or defined it.
        measures: Its measures by name.
        classes: How many classes a task must have; None: any number.
        lowest: The lowest score that predictions can have.
        label: Its name in charts; by default the name.
    """

    name: str
    title: str
    source: str
    measures: Mapping[str, Measure]
    classes: int | None = None
    lowest: float = 0.0
    label: str = ""

    @property
    def shown(self) -> str:
        """The name in charts."""
        return self.label or self.name

    def as_dict(self) -> dict[str, str]:
        """Return its fields as JSON-ready values for tables: name, title, measures, source."""
        return {"name": self.name, "title": self.title, "measures": ", ".join(self.measures), "source": self.source}

    def measured(self, labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        """Compute every measure, and `score`, their mean.

        Args:
            labels: (N,) class ids.
            predicted: (N,) class ids.

        Returns:
            Fractions by the measures' names.
        """
        values = {name: measure.function(labels, predicted) for name, measure in self.measures.items()}
        return {**values, "score": float(np.mean(list(values.values())))}

    def influence(self, labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Compute each sample's influence on the score.

        Args:
            labels: (N,) class ids.
            predicted: (N,) class ids.

        Returns:
            (N,) influences of mean 0; see :class:`Measure`.
        """
        influences = [
            jackknife(measure.function, labels, predicted)
            if measure.influence is None
            else measure.influence(labels, predicted)
            for measure in self.measures.values()
        ]
        return np.asarray(np.mean(influences, axis=0))

    def majority(self, labels: np.ndarray) -> tuple[int, float]:
        """Find the class whose constant prediction scores best.

        Args:
            labels: (N,) class ids.

        Returns:
            The class and its score; of equal scores, the most frequent class.
        """
        classes, counts = np.unique(labels, return_counts=True)
        by_frequency = (int(k) for k in classes[np.argsort(-counts, kind="stable")])
        scored = {k: self.measured(labels, np.full_like(labels, k))["score"] for k in by_frequency}
        best = max(scored, key=lambda k: scored[k])
        return best, scored[best]

    def chance(self, labels: np.ndarray, num_classes: int) -> float:
        """Compute the score of uniform random guesses.

        Args:
            labels: (N,) class ids.
            num_classes: K.

        Returns:
            The score, as a fraction.
        """
        guesses = np.tile(np.arange(num_classes), len(labels))
        return self.measured(np.repeat(labels, num_classes), guesses)["score"]


#: What every exit is also measured by, under names that no measure may have.
RESERVED = ("score", "loss")


def check_fits(plugin: Metric) -> None:
    """Refuse a metric without measures, or with an invalid one.

    Args:
        plugin: The metric.

    Raises:
        TypeError: A measure is not a :class:`Measure`, or its function cannot be called.
        ValueError: The metric has no measure, or a measure's name is invalid or reserved (`score`, `loss`).
    """
    if not plugin.measures:
        raise ValueError("it has no measure; give it at least one")
    for name, measure in plugin.measures.items():
        if name in RESERVED:
            raise ValueError(f"measure {name!r}: every exit already has a value of this name; rename the measure")
        check_name(name, "measure")
        try:
            check_types(measure)
        except TypeError as error:
            raise TypeError(f"measure {name!r}: {error}") from None
