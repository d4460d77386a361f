"""Choose the exits of an export by measured time: leave out those that cost more than they save."""

from __future__ import annotations

import dataclasses

import numpy as np

from leebert.errors import ConfigError
from leebert.evaluate import RecordedLogits
from leebert.export.timing import Times
from leebert.milliseconds import mean_time
from leebert.tradeoff import tradeoff

#: The smallest share of the expected time that an exit has to cost to be left out; less may be chance.
GAIN = 0.01

_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Costs:
    """Measured times on one sample, in milliseconds.

    Attributes:
        layers: For each exit of the model, the layers between the exit before and this one.
        exit_: One exit: pooling, classifier, decision and the start of the next segment.
    """

    layers: np.ndarray
    exit_: float

    @classmethod
    def of(cls, every: Times, whole: Times) -> Costs:
        """Compute costs.

        Args:
            every: Times of one segment for each of the M exits.
            whole: Times of all layers with the last exit, as one segment.
        """
        exit_ = max(0.0, every.total - whole.total) / max(1, len(every.segments) - 1)
        return cls(np.maximum(every.segments - exit_, _ROUNDING), exit_)

    def up_to(self, kept: tuple[int, ...]) -> np.ndarray:
        """Return the time up to each of the kept exits, (E,).

        Args:
            kept: The exits, from 0, ascending.
        """
        times: np.ndarray = self.layers.cumsum()[list(kept)] + self.exit_ * np.arange(1, len(kept) + 1)
        return times


@dataclasses.dataclass(frozen=True)
class Choice:
    """The exits of an export.

    Attributes:
        kept: The exits, from 0, ascending.
        expected: Expected time of a sample with them, in milliseconds.
        before: The same with all exits.
        costs: What they were computed from.
    """

    kept: tuple[int, ...]
    expected: float
    before: float
    costs: Costs


def subset(recorded: RecordedLogits, kept: tuple[int, ...]) -> RecordedLogits:
    """Keep the logits of some exits.

    Args:
        recorded: Logits (M, N, K).
        kept: The exits, from 0, ascending.
    """
    index = list(kept)
    layers = tuple(recorded.layers[i] for i in index)
    return RecordedLogits(recorded.logits[index], recorded.labels, layers, recorded.depth)


def choose_by_time(
    recorded: RecordedLogits, costs: Costs, metric: str, criterion: str, patience: int | None, loss: float
) -> Choice:
    """Leave out one exit after the other, as long as the expected time falls by more than :data:`GAIN`.

    The expected time is that of the fastest threshold of the criterion whose score drops by at most `loss`.

    Args:
        recorded: Logits (M, N, K) of all exits, with labels.
        costs: The measured times.
        metric: Name of the task's metric.
        criterion: The exit criterion.
        patience: Its second parameter.
        loss: The largest drop in score against the last exit, as a fraction.

    Returns:
        The exits to keep; the last one is always kept.
    """

    def expected(kept: tuple[int, ...]) -> float:
        up_to = costs.up_to(kept)
        if len(kept) == 1:
            return float(up_to[-1])
        try:
            curve = tradeoff(subset(recorded, kept), criterion, patience, metric=metric)
        except ConfigError:  # too few exits for the criterion
            return float("inf")
        within = curve.scores >= curve.scores[-1] - loss - _ROUNDING
        return float(mean_time(curve.counts, up_to)[within].min())

    kept = tuple(range(len(recorded.logits)))
    best = before = expected(kept)
    while len(kept) > 1:
        fewer = {exit_: tuple(i for i in kept if i != exit_) for exit_ in kept[:-1]}
        times = {exit_: expected(others) for exit_, others in fewer.items()}
        dropped = min(times, key=times.__getitem__)
        if not times[dropped] < (1 - GAIN) * best:
            break
        kept, best = fewer[dropped], times[dropped]
    return Choice(kept, best, before, costs)
