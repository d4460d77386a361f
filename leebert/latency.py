"""Wall-clock time of early-exit inference beside the layer ratio: the two are never the same."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leebert.config import ExitConfig
from leebert.evaluate import HeldOut, replay_point
from leebert.exits import make_strategy
from leebert.inference import infer
from leebert.record import Rows
from leebert.runtime import Runtime

#: The paper's speed-up, at which tables compare methods (table 1: 1.93 to 1.96).
PAPER_SPEED_UP = 1.95
ROUNDS = 3


def nearest_point(points: list[dict[str, Any]], speed_up: float = PAPER_SPEED_UP) -> dict[str, Any]:
    """The point of a curve whose speed-up in layers is nearest."""
    return min(points, key=lambda p: abs(p["speed_up"] - speed_up))


def time_rules(
    model: Any,
    rows: Rows,
    recorded: HeldOut,
    metric: str,
    rules: Sequence[ExitConfig],
    runtime: Runtime,
    most: int = 100,
) -> list[dict[str, Any]]:
    """Milliseconds per row at batch size 1 for some rules, against running every layer, in alternation.

    On at most `most` rows spread over the data. `speed_up` is the ratio of the medians, `layer_ratio` M / mean layers on
    the same rows.
    """
    m, n, k = recorded.logits.shape
    index = np.linspace(0, n - 1, min(most, n)).astype(int)
    labels = None if recorded.labels is None else recorded.labels[index]
    part = dataclasses.replace(recorded, logits=recorded.logits[:, index], labels=labels)
    batches = [rows.collate([i]) for i in index]
    everything = [ExitConfig(strategy="never"), *rules]
    strategies = [make_strategy(r.strategy, r.threshold, r.patience, num_exits=m, num_classes=k) for r in everything]
    seconds: list[list[float]] = [[] for _ in strategies]
    for round_ in range(ROUNDS + 1):
        for i, strategy in enumerate(strategies):
            started = time.perf_counter()
            for batch in batches:
                infer(model, batch, strategy, runtime)
            if round_:  # the first round warms up
                seconds[i].append(time.perf_counter() - started)
    medians = [float(np.median(s)) / len(batches) for s in seconds]
    return [
        {
            **rule.model_dump(),
            "milliseconds": 1000 * median,
            "speed_up": medians[0] / median,
            "layer_ratio": replay_point(part, metric, rule.strategy, rule.threshold, rule.patience).speed_up,
        }
        for rule, median in zip(everything, medians, strict=True)
    ]


def machine(runtime: Runtime) -> str:
    """What a latency was measured on, in words: processor or GPU, threads, precision."""
    told = runtime.describe()
    if runtime.device.type != "cpu":
        return f"{told['device']}, {told['precision']}"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {told['threads']} thread(s), {told['precision']}"
