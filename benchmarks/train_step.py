"""Seconds and memory per step of θ: plain fine-tuning of the multi-exit model against CLO.

The variants are plain training (uniform weights, cross-entropy at every exit, no teachers), the same with
distillation from all exits (LAE), CLO-v1, and CLO-v2 with C = 4, both with LAE. Each has its own copy of the model
and its own optimisers. In each round every variant runs the same length-bucketed batches B1 of MRPC, and CLO draws
its B2 from the other half of the split, as in training; the variants alternate. A step of CLO-v2 is the mean over
whole cycles. The arithmetic beside each ratio counts padded tokens of these batches: forward and backward pass are 3
units, a forward pass for ω is 1. Memory is each variant's peak in its own process.

Targets, as multiples of plain: CLO-v1 <= 1.75, CLO-v2 <= 1.20 (arithmetic 5/3 and 7/6); memory of CLO <= 1.10.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from common import BATCH, Result, alternate, mrpc, now, parser, peak_rss, problem, ratios, scratch, start

CYCLE = 4
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"algorithm": "uniform", "teachers": "none"},
    "plain + LAE": {"algorithm": "uniform"},
    "CLO-v1": {"algorithm": "clo-v1"},
    "CLO-v2": {"algorithm": "clo-v2", "cycle_length": CYCLE},
}
TARGETS = {"CLO-v1": 1.75, "CLO-v2": 1.20}


class Variant:
    """A variant with its own model, optimisers and position in the cycle."""

    def __init__(self, name: str, source: Any, device: str) -> None:
        import torch

        from leebert.config import TrainConfig
        from leebert.level import StageLevel
        from leebert.runtime import Runtime
        from leebert.stages import method

        self.name, self.device = name, device
        config = TrainConfig(batch_size=BATCH, **VARIANTS[name])
        runtime = Runtime.of(config.precision, device)
        torch.manual_seed(0)
        model = source.model(config).to(runtime.device)
        model.train()
        (self.stage,) = method(config, model.num_exits)
        self.level = StageLevel(model, self.stage, config, runtime, (0,))
        self.position = 0

    def run(self, batches: list[Any], d2: Iterator[Any]) -> float:
        """Return the seconds per step of θ over whole cycles."""
        self.level.start_epoch(d2)
        started = now(self.device)
        for batch in batches:
            self.position = self.stage.algorithm.step(self.level, self.level.to_device(batch), self.position)
        return (now(self.device) - started) / len(batches)


class Epochs:
    """The batches of each round, equal for all variants: B1, and an endless B2."""

    def __init__(self, rows: Any, steps: int) -> None:
        self.rows, self.steps = rows, steps

    def plan(self, number: int) -> Any:
        from leebert.data.batches import plan_epoch

        return plan_epoch(self.rows.lengths, BATCH, True, (0, "bench"), number)

    def d1(self, number: int) -> list[Any]:
        return [self.rows.collate(index) for index in self.plan(number).d1[: self.steps]]

    def d2(self, number: int) -> Iterator[Any]:
        return (self.rows.collate(index) for index in self.plan(number).d2())

    def one_of_each_length(self, rounds: int) -> list[Any]:
        """Return a batch of every length in the rounds."""
        met: dict[int, Any] = {}
        for number in range(rounds):
            for batch in [*self.d1(number), *itertools.islice(self.d2(number), self.steps)]:
                met.setdefault(batch["input_ids"].shape[1], batch)
        return list(met.values())

    def arithmetic(self, number: int, cycle: int | None) -> float:
        """Return the cost / plain training's in padded tokens, with ω updated on D2 at every cycle's end."""
        b1, d2 = [_tokens(b) for b in self.d1(number)], self.d2(number)
        if cycle is None:
            return 1.0
        extra = sum(tokens + _tokens(next(d2)) for tokens in b1[cycle - 1 :: cycle])
        return 1 + extra / (3 * sum(b1))


def _tokens(batch: Any) -> int:
    return int(batch["input_ids"].numel())


def memory_of(name: str, options: argparse.Namespace) -> None:
    """Train in this process and print its peak memory in bytes as JSON."""
    import torch

    with scratch() as folder:
        data = mrpc(folder)
        variant, epochs = Variant(name, problem(data), options.device), Epochs(data.rows, options.steps)
        variant.run(epochs.d1(0), epochs.d2(0))
    gpu = torch.cuda.max_memory_allocated(options.device) if options.device.startswith("cuda") else None
    print(json.dumps({"peak": gpu or peak_rss()}))


def measure_memory(result: Result, options: argparse.Namespace) -> None:
    """Measure each variant's peak memory in a fresh process."""
    peaks = {}
    for name in VARIANTS:
        command = [sys.executable, str(Path(__file__).resolve()), "--memory-of", name]
        for option in ("steps", "threads", "device"):
            command += [f"--{option}", str(getattr(options, option))]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[name] = json.loads(done.stdout.splitlines()[-1])["peak"]
        result.figure(f"peak memory, {name}", peaks[name] / 2**20, "MiB")
    for name in TARGETS:
        result.target(f"memory, {name} / plain", peaks[name] / peaks["plain"], 1.10)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--steps", type=int, default=16, help="steps of θ per round and variant, whole cycles (16)")
    made.add_argument("--no-memory", action="store_true", help="leave the memory out")
    made.add_argument("--memory-of", choices=list(VARIANTS), help=argparse.SUPPRESS)
    options = made.parse_args()
    options.steps = -(-options.steps // CYCLE) * CYCLE
    start(options.threads)
    if options.memory_of:
        memory_of(options.memory_of, options)
        return
    result = Result("train_step", options)
    with scratch() as folder:
        data = mrpc(folder)
        epochs = Epochs(data.rows, options.steps)
        variants = {name: Variant(name, problem(data), options.device) for name in VARIANTS}
        # Not timed: the first cycle makes the optimisers' states, and libraries build kernels at the first batch of
        # each length, which would count against whoever comes first in a round.
        for variant in variants.values():
            variant.run(epochs.d1(0)[:CYCLE], epochs.d2(0))
        shapes = epochs.one_of_each_length(options.rounds)
        variants["CLO-v1"].run(shapes, iter(shapes))

        def seconds_of(name: str, number: int) -> float:
            return variants[name].run(epochs.d1(number), epochs.d2(number))

        seconds = alternate({name: partial(seconds_of, name) for name in VARIANTS}, options.rounds)
    for name, values in seconds.items():
        result.figure(f"step, {name}", values, "s")
    result.figure("step, plain + LAE / plain", ratios(seconds["plain + LAE"], seconds["plain"]))
    for name, limit in TARGETS.items():
        cycle = 1 if name == "CLO-v1" else CYCLE
        expected = [epochs.arithmetic(number, cycle) for number in range(options.rounds)]
        result.figure(f"arithmetic of these batches, {name}", statistics.median(expected))
        result.target(f"step, {name} / plain", ratios(seconds[name], seconds["plain"]), limit)
    if not options.no_memory:
        measure_memory(result, options)
    result.end()


if __name__ == "__main__":
    main()
