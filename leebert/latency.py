"""Wall-clock time of early-exit inference beside the layer ratio: the two are never the same."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from leebert.config import ExitConfig
from leebert.evaluate import HeldOut
from leebert.exits import FULL_MODEL
from leebert.exits.criterion import ExitCriterion
from leebert.exits.replay import make_criterion
from leebert.inference import infer
from leebert.record import Batch, Rows
from leebert.runtime import Runtime
from leebert.tradeoff import replay_point

ROUNDS = 3

#: Rounds of :func:`time_exits`: at least, and at most where the machine has other work.
LEAST_ROUNDS, MOST_ROUNDS = 4, 16

# When a machine is taken for one without other work: its thread had a processor for that share of the time, and the
# fastest of two halves of the rounds differ by no more than that.
_UNDISTURBED, _STEADY = 0.95, 0.02

Key = TypeVar("Key", bound=Hashable)


def time_criteria(
    model: Any,
    rows: Rows,
    recorded: HeldOut,
    metric: str,
    exits: Sequence[ExitConfig],
    runtime: Runtime,
    most: int = 100,
) -> list[dict[str, Any]]:
    """Milliseconds per row at batch size 1 under some exit criteria, against running every layer, in alternation.

    On at most `most` rows spread over the data. `speed_up` is the ratio of the medians, `layer_ratio` M / mean layers on
    the same rows.
    """
    m, n, k = recorded.logits.shape
    index = np.linspace(0, n - 1, min(most, n)).astype(int)
    labels = None if recorded.labels is None else recorded.labels[index]
    part = dataclasses.replace(recorded, logits=recorded.logits[:, index], labels=labels)
    batches = [rows.collate([i]) for i in index]
    everything = [ExitConfig(criterion=FULL_MODEL), *exits]
    made = [make_criterion(r.criterion, r.threshold, r.patience, num_exits=m, num_classes=k) for r in everything]
    seconds: list[list[float]] = [[] for _ in made]
    for round_ in range(ROUNDS + 1):
        for i, criterion in enumerate(made):
            started = time.perf_counter()
            for batch in batches:
                infer(model, batch, criterion, runtime)
            if round_:  # the first round warms up
                seconds[i].append(time.perf_counter() - started)
    medians = [float(np.median(s)) / len(batches) for s in seconds]
    return [
        {
            **asked.model_dump(),
            "milliseconds": 1000 * median,
            "speed_up": medians[0] / median,
            "layer_ratio": replay_point(part, metric, asked.criterion, asked.threshold, asked.patience).speed_up,
        }
        for asked, median in zip(everything, medians, strict=True)
    ]


class _Stopwatch:
    """A criterion that steps another one, notes when each exit has decided, and lets no sample exit."""

    def __init__(self, criterion: ExitCriterion) -> None:
        self.criterion = criterion
        self.times = [_clocks()]

    def step(self, logits: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        leaves, state = self.criterion.step(logits, state)
        bool(leaves.any())  # waits for a GPU
        self.times.append(_clocks())
        return torch.zeros_like(leaves), state


def _clocks() -> tuple[float, float]:
    """Seconds of the wall clock, and of this thread on a processor."""
    return time.perf_counter(), time.thread_time()


@dataclasses.dataclass(frozen=True)
class ExitTimes(Generic[Key]):
    """What :func:`time_exits` found. seconds: up to each exit's decision, (M,) per key.

    share: of the time, how much the thread had a processor, for the key that had the least; 1 on a GPU. apart: by how much
    the fastest of the even rounds and of the odd ones differ, as a share, for the key that differs the most. Where share is
    low or apart is high, something else was at work, and times are rough.
    """

    seconds: dict[Key, np.ndarray]
    share: float
    apart: float


def time_exits(
    models: Mapping[Key, tuple[Any, ExitCriterion]], batches: Sequence[Batch], runtime: Runtime
) -> ExitTimes[Key]:
    """Seconds up to each exit's decision for batches of one row; in alternation on one thread.

    models: any key → a model in eval mode and the exit criterion whose decisions are timed. Each row runs through all layers. From
    one exit to the next counts the fastest round, so that a machine with other work is not taken for a slow network, and of
    these the median over rows. There are :data:`LEAST_ROUNDS` rounds and up to :data:`MOST_ROUNDS`, until the machine
    seems to have no other work.
    """
    # (N, M, 2) of the even and of the odd rounds: the wall clock's seconds, and the thread's of that round.
    halves = {key: np.full((2, len(batches), model.num_exits, 2), np.inf) for key, (model, _) in models.items()}
    share, apart = 1.0, 0.0
    for round_ in range(MOST_ROUNDS + 1):
        for key, (model, criterion) in models.items():
            for row, batch in enumerate(batches):
                watch = _Stopwatch(criterion)
                infer(model, batch, watch, runtime).layers.cpu()
                taken = np.diff([*watch.times, _clocks()], axis=0)  # (M, 2)
                if round_:  # the first round warms up
                    fastest = halves[key][round_ % 2, row]
                    faster = taken[:, 0] < fastest[:, 0]
                    fastest[faster] = taken[faster]
        if round_ >= LEAST_ROUNDS:
            totals = [half.sum(axis=(1, 2)) for half in halves.values()]  # (2, 2) each
            apart = max((abs(math.log(even[0] / odd[0])) for even, odd in totals), default=0.0)
            if runtime.device.type == "cpu":
                share = min((on / wall for wall, on in (total.sum(axis=0) for total in totals)), default=1.0)
            if share >= _UNDISTURBED and apart <= _STEADY:
                break
    seconds = {key: np.median(half[..., 0].min(axis=0), axis=0).cumsum() for key, half in halves.items()}
    return ExitTimes(seconds, min(share, 1.0), apart)


def machine(runtime: Runtime) -> str:
    """What a latency was measured on, in words: processor or GPU, threads, precision."""
    told = runtime.describe()
    if runtime.device.type != "cpu":
        return f"{told['device']}, {told['precision']}"
    return f"{told.get('processor', told['machine'])}, {told['threads']} thread(s), {told['precision']}"
