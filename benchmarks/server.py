"""`leebert-tune serve` against the runtime that it runs: what HTTP, frames, threads and batches cost.

python benchmarks/server.py --model x/mrpc-int8 --threads 1 --json docs/results/serving/server.jsonl

Both classify the same texts of MRPC's development split from text to label, tokenising included, at the threshold of --loss.
The server has one replica and a fixed threshold. Two loads alternate with the runtime alone: one client, which sends its
next request after each answer, and --clients such clients. The runtime alone predicts one text at a time, and batches of
the mean size that the server formed, in the same order.

The replica has --threads cores of its own, which the runtime alone uses too. The load generator, the front, and Ray share
the first core of those that this program may use.

Targets: the server adds at most 1 ms to the median time of one client, and has at least 0.85 of the runtime's throughput.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from common import Result, alternate, glue, parser, ratios, scratch, stop
from surge import pin_replica, server

from leebert.exported.model import ExportedModel
from tune.serve.load import Sample, about_server, closed_loop, read_samples


class Alone:
    """The runtime in this process."""

    def __init__(self, folder: Path, threads: int, loss: float, samples: Sequence[Sample]) -> None:
        self.model = ExportedModel.load(folder, threads=threads)
        self.exits = self.model.choose(max_loss=loss)
        records = [json.loads(sample.body)["dataframe_records"][0] for sample in samples]
        self.texts = [tuple(record.values()) for record in records]

    def run(self, order: Sequence[int], batch: int = 1) -> np.ndarray:
        """Predict texts in batches; returns the seconds of each batch."""
        times = []
        for start in range(0, len(order), batch):
            texts = [self.texts[i] for i in order[start : start + batch]]
            started = time.perf_counter()
            self.model.predict(texts, self.exits, batch_size=batch)
            times.append(time.perf_counter() - started)
        return np.array(times)


class Served:
    """The server, at its address."""

    def __init__(self, address: str, samples: Sequence[Sample]) -> None:
        self.address, self.samples = address, samples

    def run(self, order: Sequence[int], clients: int = 1) -> tuple[float, np.ndarray]:
        """Send requests by some clients; returns the seconds of all, and of each."""
        started = time.perf_counter()
        times = asyncio.run(closed_loop(self.address, self.samples, iter(order), clients))
        return time.perf_counter() - started, np.array(times)

    def mean_batch(self) -> tuple[float, float]:
        """Sum and number of the sizes of all batches so far."""
        time.sleep(1.1)  # replicas report twice a second
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        name = "leebert_batch_texts"
        total, count = (
            next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}_{part}"))
            for part in ("sum", "count")
        )
        return total, count


@contextmanager
def on(cores: set[int]) -> Iterator[None]:
    """Run this thread on some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def compare(alone: Alone, served: Served, cores: set[int], options: Any, result: Result) -> None:
    """Alternate the two, print figures and targets."""
    rng = np.random.default_rng(0)
    orders = [rng.integers(len(alone.texts), size=options.requests).tolist() for _ in range(options.rounds)]

    def runtime(number: int, batch: int = 1) -> np.ndarray:
        with on(cores):
            return alone.run(orders[number], batch)

    runtime(0), served.run(orders[0], options.clients)  # neither pays for what is done once
    one = alternate(
        {
            "runtime": lambda number: 1000 * float(np.median(runtime(number))),
            "server": lambda number: 1000 * float(np.median(served.run(orders[number])[1])),
        },
        options.rounds,
    )
    before = served.mean_batch()
    served.run(orders[0], options.clients)
    after = served.mean_batch()
    size = (after[0] - before[0]) / (after[1] - before[1])
    batch = max(1, round(size))
    many = alternate(
        {
            "runtime": lambda number: options.requests / float(runtime(number, batch).sum()),
            "runtime, batch 8": lambda number: options.requests / float(runtime(number, 8).sum()),
            "server": lambda number: options.requests / served.run(orders[number], options.clients)[0],
        },
        options.rounds,
    )
    for name, values in one.items():
        result.figure(f"{name}: one client, p50", values, "ms")
    result.figure("texts per batch of the server", size)
    for name, values in many.items():
        result.figure(f"{name}: throughput", values, "texts/s")
    result.target("p50 of one client: server - runtime", np.subtract(one["server"], one["runtime"]).tolist(), 1.0)
    result.target("throughput: server / runtime", ratios(many["server"], many["runtime"]), 0.85, least=True)


def main() -> None:
    """Start the server on cores of its own, and compare."""
    made = parser(__doc__)
    made.add_argument("--model", type=Path, required=True, help="folder that `leebert export` wrote")
    made.add_argument("--data", type=Path, help="texts; by default MRPC's dev split in LEEBERT_DATA")
    made.add_argument("--loss", type=float, default=1.0, help="points of score that may be lost (%(default)g)")
    made.add_argument("--clients", type=int, default=16, help="clients at saturation (%(default)s)")
    made.add_argument("--requests", type=int, default=400, help="requests per round (%(default)s)")
    options = made.parse_args()
    available = sorted(os.sched_getaffinity(0))
    if len(available) < 1 + options.threads:
        stop(f"--threads {options.threads} needs {1 + options.threads} cores, this program may use {len(available)}")
    first, cores = {available[0]}, set(available[-options.threads :])
    result = Result("server", options)
    data = options.data or glue() / "MRPC" / "dev.tsv"
    words = ("--max-loss", f"{options.loss:g}", "--threads", str(options.threads), "--max-wait-ms", "60000")
    os.sched_setaffinity(0, first)
    with scratch() as out, server(options.model, out, *words) as address:
        pin_replica(cores)
        samples = read_samples(data, about_server(address))
        with on(cores):  # threads of ONNX Runtime keep the cores of the thread that makes them
            alone = Alone(options.model, options.threads, options.loss, samples)
        compare(alone, Served(address, samples), cores, options, result)
    result.end("fp32")


if __name__ == "__main__":
    main()
