"""Wall-clock time of early-exit inference, to compare with the layer speed-up."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from leebert.config import ExitConfig
from leebert.evaluate import RecordedLogits
from leebert.exits import FULL_MODEL
from leebert.exits.criterion import ExitCriterion
from leebert.exits.replay import make_criterion
from leebert.inference import infer
from leebert.milliseconds import ExitMilliseconds, samples_in_words
from leebert.record import Batch, SampleSet
from leebert.runtime import Runtime
from leebert.tradeoff import replay_point

ROUNDS = 3

#: Rounds of :func:`time_exits`: the least, and the most if other processes disturb the measurement.
LEAST_ROUNDS, MOST_ROUNDS = 4, 16

#: Samples of :func:`exit_milliseconds`.
TIMED = 20

# A measurement counts as undisturbed if the thread ran on a processor for this share of the time, and the fastest even and
# odd rounds differ by at most this share.
_UNDISTURBED, _STEADY = 0.95, 0.02

Key = TypeVar("Key", bound=Hashable)
Read = TypeVar("Read")


def time_criteria(
    model: Any,
    rows: SampleSet,
    recorded: RecordedLogits,
    metric: str,
    exits: Sequence[ExitConfig],
    runtime: Runtime,
    most: int = 100,
) -> list[dict[str, Any]]:
    """Measure wall-clock times at batch size 1 under exit criteria and of the full model, in alternation.

    Args:
        model: A model in evaluation mode.
        rows: N samples.
        recorded: Their logits (M, N, K) and labels.
        metric: Name of the task's metric.
        exits: The exit criteria with thresholds.
        runtime: Device and precision.
        most: Number of samples to time, spread over the data.

    Returns:
        For the full model and each criterion: its parameters, `milliseconds` per sample (median over rounds), `speed_up`
        (wall-clock speed-up), and `layer_ratio` (layer speed-up on the timed samples).
    """
    m, n, k = recorded.logits.shape
    index = np.linspace(0, n - 1, min(most, n)).astype(int)
    labels = None if recorded.labels is None else recorded.labels[index]
    part = dataclasses.replace(recorded, logits=recorded.logits[:, index], labels=labels)
    batches = [rows.collate([i]) for i in index]
    settings = [ExitConfig(criterion=FULL_MODEL), *exits]
    criteria = [make_criterion(r.criterion, r.threshold, r.patience, num_exits=m, num_classes=k) for r in settings]
    seconds: list[list[float]] = [[] for _ in criteria]
    for round_ in range(ROUNDS + 1):
        for i, criterion in enumerate(criteria):
            started = time.perf_counter()
            for batch in batches:
                infer(model, batch, criterion, runtime)
            if round_:  # the first round warms up
                seconds[i].append(time.perf_counter() - started)
    medians = [float(np.median(s)) / len(batches) for s in seconds]
    return [
        {
            **config.model_dump(),
            "milliseconds": 1000 * median,
            "speed_up": medians[0] / median,
            "layer_ratio": replay_point(part, metric, config.criterion, config.threshold, config.patience).speed_up,
        }
        for config, median in zip(settings, medians, strict=True)
    ]


class Stopwatch(Generic[Read]):
    """A criterion that records the time of each exit's decision by another criterion, and lets no sample exit.

    Args:
        criterion: The other criterion, of tensors or arrays.
        clock: Read at the start and after each decision.
    """

    def __init__(self, criterion: ExitCriterion, clock: Callable[[], Read]) -> None:
        self.criterion, self.clock = criterion, clock
        self.times = [clock()]

    def step(self, logits: Any, state: Any) -> tuple[Any, Any]:
        """Let the other criterion decide; no sample exits."""
        exited, state = self.criterion.step(logits, state)
        bool(exited.any())  # waits for a GPU
        self.times.append(self.clock())
        return exited & False, state


def _clocks() -> tuple[float, float]:
    """Return seconds of the wall clock and of this thread's processor time."""
    return time.perf_counter(), time.thread_time()


@dataclasses.dataclass(frozen=True)
class ExitTimes(Generic[Key]):
    """The results of :func:`time_exits`. If `share` is low or `apart` is high, other processes disturbed the measurement.

    Attributes:
        seconds: (M,) seconds up to each exit's decision, by key.
        share: Smallest share of the time, over keys, in which the thread ran on a processor; 1 on a GPU.
        apart: Largest relative difference, over keys, between the fastest even and odd rounds.
    """

    seconds: dict[Key, np.ndarray]
    share: float
    apart: float


def time_exits(
    models: Mapping[Key, tuple[Any, ExitCriterion]], batches: Sequence[Batch], runtime: Runtime, most: int = MOST_ROUNDS
) -> ExitTimes[Key]:
    """Measure the time up to each exit's decision, for several models in alternation.

    Each sample runs through all layers. The time between two exits is the fastest of the rounds, which excludes disturbance by
    other processes, and then the median over samples. There are :data:`LEAST_ROUNDS` to `most` rounds, until the measurement
    counts as undisturbed.

    Args:
        models: By any key, a model in evaluation mode and the exit criterion to time.
        batches: Batches of one sample.
        runtime: Device and precision.
        most: Most rounds.
    """
    # (2, N, M, 2), for even and odd rounds: the fastest wall-clock seconds, and the thread's seconds of that round.
    halves = {key: np.full((2, len(batches), model.num_exits, 2), np.inf) for key, (model, _) in models.items()}
    share, apart = 1.0, 0.0
    for round_ in range(most + 1):
        for key, (model, criterion) in models.items():
            for sample, batch in enumerate(batches):
                watch = Stopwatch(criterion, _clocks)
                infer(model, batch, watch, runtime).layers.cpu()
                elapsed = np.diff([*watch.times, _clocks()], axis=0)  # (M, 2)
                if round_:  # the first round warms up
                    fastest = halves[key][round_ % 2, sample]
                    faster = elapsed[:, 0] < fastest[:, 0]
                    fastest[faster] = elapsed[faster]
        if round_ >= LEAST_ROUNDS:
            totals = [half.sum(axis=(1, 2)) for half in halves.values()]  # (2, 2) each
            apart = max((abs(math.log(even[0] / odd[0])) for even, odd in totals), default=0.0)
            if runtime.device.type == "cpu":
                share = float(min((on / wall for wall, on in (total.sum(axis=0) for total in totals)), default=1.0))
            if share >= _UNDISTURBED and apart <= _STEADY:
                break
    seconds = {key: np.median(half[..., 0].min(axis=0), axis=0).cumsum() for key, half in halves.items()}
    return ExitTimes(seconds, min(share, 1.0), apart)


def exit_milliseconds(
    model: Any, rows: SampleSet, criterion: ExitCriterion, runtime: Runtime, most: int = TIMED
) -> ExitMilliseconds:
    """Measure the time of one sample up to each exit's decision, at batch size 1 on this machine.

    Args:
        model: A model in evaluation mode.
        rows: The samples, of which some that are spread over the lengths are timed.
        criterion: The exit criterion whose decisions are timed.
        runtime: Device and precision.
        most: Number of samples to time.

    Returns:
        The times, with what they were measured with.
    """
    order = np.argsort(np.asarray(rows.lengths), kind="stable")
    index = order[np.linspace(0, len(order) - 1, min(most, len(order))).astype(int)]
    times = time_exits({"": (model, criterion)}, [rows.collate([i]) for i in index], runtime, most=2 * LEAST_ROUNDS)
    exits = 1000 * times.seconds[""]
    layers = tuple(getattr(model, "exit_layers", range(1, model.num_exits + 1)))
    described = f"PyTorch, {machine(runtime)}, {samples_in_words(np.asarray(rows.lengths)[index])}"
    disturbed = bool(times.share < _UNDISTURBED or times.apart > 5 * _STEADY)
    return ExitMilliseconds(tuple(exits.tolist()), layers, described, disturbed)


def machine(runtime: Runtime) -> str:
    """Describe the machine of a measurement: processor or GPU, threads, precision."""
    facts = runtime.describe()
    if runtime.device.type != "cpu":
        return f"{facts['device']}, {facts['precision']}"
    return f"{facts.get('processor', facts['machine'])}, {facts['threads']} thread(s), {facts['precision']}"
