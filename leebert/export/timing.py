"""Measure the wall-clock time of exported models, exit by exit, on single samples."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from leebert.exits.criterion import ExitCriterion
from leebert.latency import Stopwatch

#: Samples that are timed, spread over their lengths, and rounds, of which the fastest counts.
SAMPLES, ROUNDS = 48, 6


@dataclasses.dataclass(frozen=True)
class Times:
    """Medians over samples, in milliseconds.

    Attributes:
        segments: (E,) time of each segment with its exit's decision.
        total: Time of all segments: more than their sum, since other processes disturb some segment in most rounds.
    """

    segments: np.ndarray
    total: float


def segment_times(
    models: Mapping[str, tuple[Any, ExitCriterion]],
    batches: Sequence[Mapping[str, np.ndarray]],
    *,
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Times]:
    """Measure the time of each segment with its exit's decision, for several models in alternation.

    Args:
        models: By any name, a :class:`leebert.exported.model.ExportedModel` and the exit criterion to time.
        batches: Batches of one sample.
        rounds: Rounds after the first, which warms up. Of each sample the fastest counts, which other processes disturb
            least.
        clock: Seconds of the wall clock, or of this thread's processor time: of a single thread, differences of the
            latter are exact on a machine that does other things, too.

    Returns:
        The times by name.
    """
    # Of each sample, the time of every segment, and in the last column of all of them.
    fastest = {
        name: np.full((len(batches), model.manifest.num_exits + 1), np.inf) for name, (model, _) in models.items()
    }
    for round_ in range(rounds + 1):
        for sample, batch in enumerate(batches):
            for name, (model, criterion) in models.items():
                watch = Stopwatch(criterion, clock)
                model.infer(batch, watch)
                if round_:
                    ended = clock()
                    elapsed = np.append(np.diff([*watch.times, ended]), ended - watch.times[0])
                    fastest[name][sample] = np.minimum(fastest[name][sample], elapsed)
    medians = {name: 1000 * np.median(times, axis=0) for name, times in fastest.items()}
    return {name: Times(median[:-1], float(median[-1])) for name, median in medians.items()}


def timed(lengths: np.ndarray, most: int = SAMPLES) -> np.ndarray:
    """Choose samples whose lengths are spread like those of all.

    Args:
        lengths: (N,) length of each sample.
        most: Number of samples.

    Returns:
        Their positions, of the shortest first.
    """
    order = np.argsort(lengths, kind="stable")
    quantiles = (np.arange(min(most, len(order))) + 0.5) / min(most, len(order))
    chosen: np.ndarray = order[(quantiles * len(order)).astype(int)]
    return chosen
