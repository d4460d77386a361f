"""An exit criterion as data: the meaning and range of its threshold, its constructor, and its label and colour.

A criterion is written once for torch tensors, NumPy arrays and others (:mod:`leebert.exits.arrays`). Its module imports no
torch, so that exported models run, configurations are checked and tables are made without it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol

from leebert.exits.arrays import Array

#: Relative tolerance above the upper end of a threshold's range: in float32 a sample whose classes are equally likely exceeds ln K.
THRESHOLD_SLACK = 1e-5

#: A criterion's memory of each sample still in the model: arrays whose first dimension is the sample, tuples of these, or
#: None.
CriterionState = Any


class ExitCriterion(Protocol):
    """A criterion at one threshold, stepped from exit to exit. The state is passed and returned, nothing is kept in the object.

    Logits and state are arrays of one kind: torch tensors in training, NumPy arrays in exported models.
    """

    def step(self, logits: Array, state: CriterionState) -> tuple[Array, CriterionState]:
        """Decide which samples exit.

        Args:
            logits: (B, K) of the next exit.
            state: What `step` returned at the exit before, for the samples that did not exit there; None at the first exit.

        Returns:
            (B,) bool, true for the samples that exit here, and the state for the next exit. A sample's decision and state
            depend on its own logits alone.
        """
        ...


class Measured(ExitCriterion, Protocol):
    """A criterion that compares a real number with its threshold."""

    def measure(self, logits: Array, state: CriterionState) -> tuple[Array, CriterionState]:
        """Compute the number that is compared with the threshold; it does not depend on the threshold.

        Args:
            logits: (B, K) of the next exit.
            state: What `measure` returned at the exit before; a state of its own, None at the first exit.

        Returns:
            (B,) float32 of the same kind of array, and the state for the next exit.
        """
        ...


def first_exit(patience: int) -> int:
    """Return 1: under most criteria, a sample may exit at the first exit."""
    return 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Criterion:
    """An early-exit criterion, for models of M exits and K classes (infinity if unknown).

    Attributes:
        name: What configurations and `--criterion` call it.
        title: One line for tables: when a sample exits.
        source: Who published it, or `ours`.
        thresholds: The values of the threshold, in words, for tables.
        earliest: The first exit at which a sample can exit, in words, for tables.
        make: The criterion to step, from the threshold (0 without one), the patience (1 without one) and K.
        span: From M and K, the thresholds between which samples exit neither all at the earliest exit nor all at the last
            exit. None: it has no threshold.
        top: The upper end of the span in words; `{high}`, `{exits}` and `{classes}` are filled in.
        rising: Whether samples exit earlier the higher the threshold is (else the lower).
        whole: Whether thresholds are whole numbers; the criterion then needs no `measure`.
        default: The threshold's default, from M. None: it must be given.
        patience: The default of the second parameter, from M. None: it has none. A criterion with one exits if the
            measured number is below the threshold at so many exits in a row.
        first: The first exit (from 1) at which a sample can exit, from the patience.
        several: Whether it compares successive exits, of which there must be two.
        squares: Whether what it measures grows with the square of a difference or a depth, so that evenly spaced thresholds
            would be far apart in layers.
        unit_of: The criterion whose threshold this one takes in another unit.
        early: Whether samples can exit before the last exit.
        label: Its name in charts; by default the name.
        colour: Its colour in charts, as `#rrggbb`; None: the chart's next one.
    """

    name: str
    title: str
    source: str
    make: Callable[[float, int, int], ExitCriterion]
    span: Callable[[float, float], tuple[float, float]] | None = None
    thresholds: str = ""
    earliest: str = "1"
    top: str = "{high:g}"
    rising: bool = False
    whole: bool = False
    default: Callable[[int], float] | None = None
    patience: Callable[[int], int] | None = None
    first: Callable[[int], int] = first_exit
    several: bool = False
    squares: bool = False
    unit_of: str | None = None
    early: bool = True
    label: str = ""
    colour: str | None = None

    @property
    def has_threshold(self) -> bool:
        """Whether there is a threshold to choose."""
        return self.span is not None

    @property
    def shown(self) -> str:
        """The name in charts."""
        return self.label or self.name

    def bounds(self, num_exits: float = math.inf, num_classes: float = math.inf) -> tuple[float, float]:
        """Return the span of thresholds.

        Args:
            num_exits: M.
            num_classes: K.

        Returns:
            Its lower and upper end; (0, 0) without a threshold.
        """
        return (0.0, 0.0) if self.span is None else self.span(num_exits, num_classes)

    def as_dict(self) -> dict[str, str]:
        """Return its fields as JSON-ready values for tables."""
        return {
            "name": self.name,
            "title": self.title,
            "thresholds": self.thresholds,
            "earliest": self.earliest,
            "source": self.source,
        }

    def counted(self, patience: int | None, num_exits: int) -> int | None:
        """Return the second parameter, as given or its default.

        Args:
            patience: The given value; None: the default.
            num_exits: M, from which the default is computed.

        Returns:
            Number of consecutive exits; None for a criterion without this parameter.
        """
        return None if self.patience is None else patience or self.patience(num_exits)

    def problem(self, threshold: float, num_exits: float = math.inf, num_classes: float = math.inf) -> str | None:
        """Describe what is wrong with a threshold.

        Args:
            threshold: The threshold.
            num_exits: M.
            num_classes: K.

        Returns:
            One sentence with the valid range; None if the threshold is valid.
        """
        low, high = self.bounds(num_exits, num_classes)
        if self.whole and (threshold != int(threshold) or threshold < low):
            return f"{self.name} must be a whole number of at least {low:g}, not {threshold:g}"
        if self.whole and threshold > high:
            return (
                f"{self.name} {threshold:g}: this model has {num_exits} exits, so {self.name} lies between {low:g} and {high:g} "
                f"({high:g}: all layers)"
            )
        if not self.rising and threshold <= 0:
            return f"a threshold for {self.name} lies above 0, not {threshold:g}"
        if threshold < 0 and high == math.inf:
            return f"a threshold for {self.name} is at least 0, not {threshold:g}"
        if not 0 <= threshold <= high * (1 + THRESHOLD_SLACK):
            top = self.top.format(exits=num_exits, classes=num_classes, high=high)
            return f"a threshold for {self.name} lies between 0 and {top}, not {threshold:g}"
        return None


def check_fits(plugin: Criterion) -> None:
    """Refuse an exit criterion whose fields contradict each other.

    Args:
        plugin: The criterion.

    Raises:
        ValueError: It has a default or a patience but no span, or the lower end of its span is not below the upper end.
    """
    if plugin.span is None:
        if plugin.default or plugin.patience:
            raise ValueError("a criterion without a span has no threshold, so it has no default and no patience")
        return
    low, high = plugin.span(12, 2)
    if not low < high:
        raise ValueError(f"span(12, 2) is ({low:g}, {high:g}); its first number should be below its second")
