"""A discrete-event simulation of a server with one queue, for the tests and first figures of load control.

`python tests/queue_simulation.py` prints the table of docs/decisions/load-control.md.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tune.serve.control import Controller, OperatingPoint, Reading
from tune.serve.queue import Job, Queue, Row, batch_size

#: The curve of a 6-layer encoder in int8 on MRPC: the full model, then thresholds up to a loss of one point.
CURVE = tuple(
    OperatingPoint(threshold, score, 10.6 / ms, ms)
    for threshold, score, ms in (
        (0.0, 0.8090, 10.6), (0.1, 0.8085, 9.6), (0.2, 0.8080, 8.8), (0.3, 0.8060, 8.0), (0.4, 0.8035, 7.2), (0.5, 0.8010, 6.6), (0.6, 0.7995, 6.0),
    )
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Per request: arrival (s), latency (ms), place on the ladder; and the controller's changes as (time, index)."""

    arrival: np.ndarray
    latency: np.ndarray
    index: np.ndarray
    changes: list[tuple[float, int]]

    def time_within(self, target: float, start: float, end: float, window: float = 5.0) -> float:
        """Share of the seconds of an interval at whose end the p99 of the last `window` seconds met the target."""
        ends = np.arange(start + 1, end + 0.1)
        return float(np.mean([self.p99(max(0.0, at - window), at) <= target for at in ends]))

    def p99(self, start: float, end: float) -> float:
        """The 99th percentile of the latencies of requests that arrived in an interval, in ms."""
        return float(np.percentile(self.latency[(self.arrival >= start) & (self.arrival < end)], 99))


def arrivals(rate: Callable[[float], float], duration: float, rng: np.random.Generator) -> np.ndarray:
    """Poisson arrivals at a rate that changes with time (thinning), in seconds."""
    highest = max(rate(t) for t in np.linspace(0, duration, 1000))
    times = np.cumsum(rng.exponential(1 / highest, int(2 * highest * duration) + 50))
    times = times[times < duration]
    return times[rng.random(len(times)) < np.array([rate(t) for t in times]) / highest]


class Server:
    """A replica in simulated time: the queue and the batches of `tune.serve.engine`, and its readings.

    Args:
        controller: Its load control.
        rng: Draws lengths of texts and exits of samples.
        pace: Time per text relative to the curve's.
        fixed: The time that a batch takes beyond that of its rows, in rows.
        size: Waiting rows → most rows of a batch; None: that of the engine.
    """

    def __init__(
        self,
        controller: Controller,
        rng: np.random.Generator,
        pace: float = 1.0,
        fixed: float = 0.15,
        size: Callable[[int], int] | None = None,
    ) -> None:
        self.controller, self.queue, self.clock = controller, Queue(), 0.0
        self._rng, self._pace, self._fixed = rng, pace, fixed
        self._size = size or (lambda waiting: batch_size(waiting, fixed))
        self._arrived = self._arrived_large = 0
        self._ends: list[tuple[float, float]] = []  # when ordinary requests were answered, and their latencies
        self._busy = self._expected = 0.0

    def add(self, job: Job) -> None:
        self.queue.add(job)
        if job.large:
            self._arrived_large += len(job.rows)
        else:
            self._arrived += len(job.rows)

    def read(self, tick: float) -> None:
        """Give the controller a reading."""
        queue = self.queue
        done = [ms for end, ms in self._ends if end <= tick]
        self._ends = [(end, ms) for end, ms in self._ends if end > tick]
        slow = sum(ms > self.controller.aim_ms for ms in done)
        reading = Reading(
            tick, self._arrived, queue.ordinary, len(done), slow, self._busy, self._expected, self._arrived_large
        )
        self.controller.update(reading)
        self._arrived = self._arrived_large = 0
        self._busy = self._expected = 0.0

    def batch(self) -> list[Job]:
        """Run a batch; returns the ordinary requests that it answers, and moves the clock."""
        queue, controller = self.queue, self.controller
        controller.press(self.clock, queue.ordinary)
        point = controller.point
        limit = controller.target_ms / (point.milliseconds * controller.pace)
        most = max(1, min(self._size(queue.ordinary), int(limit / 2)))
        batch = queue.take(most, max(1, min(self._size(queue.large), int(limit / 4))))
        spread = self._rng.gamma(4.0, 0.25, len(batch))
        rows = np.minimum(point.milliseconds * spread, 1.5 * CURVE[0].milliseconds).sum()
        cost = self._pace * (rows + self._fixed * point.milliseconds) / (1 + self._fixed)
        self.clock += cost / 1000
        self._busy, self._expected = self._busy + cost, self._expected + len(batch) * point.milliseconds
        answered = [job for job, _ in batch if not job.large]
        self._ends += [(self.clock, 1000 * (self.clock - job.arrived)) for job in answered]
        return answered


def simulate(
    times: np.ndarray,
    controller: Controller,
    rng: np.random.Generator,
    *,
    period: float = 0.1,
    large: Sequence[tuple[float, int]] = (),
    **server: Any,
) -> Outcome:
    """Run a server that takes from its queue whenever its model is free.

    Args:
        times: Arrival times of requests with one row, in seconds.
        controller: Load control.
        rng: Draws lengths and exits.
        period: Seconds between two readings.
        large: Arrival time and number of rows of large requests.
        server: Further arguments of :class:`Server`.
    """
    row, one = Row(None, 1), Server(controller, rng, **server)
    jobs = [Job([row], None, None, at) for at in times]  # type: ignore[arg-type]
    place = {id(job): at for at, job in enumerate(jobs)}
    extra = [Job([row] * rows, None, None, at, large=True) for at, rows in large]  # type: ignore[arg-type]
    coming = collections.deque(sorted(jobs + extra, key=lambda job: job.arrived))
    latency, index = np.zeros(len(times)), np.zeros(len(times), int)
    changes: list[tuple[float, int]] = []
    tick, answered = period, 0
    while answered < len(times):
        if not one.queue:
            one.clock = max(one.clock, coming[0].arrived)
        before = controller.index
        while tick <= one.clock:
            while coming and coming[0].arrived <= tick:
                one.add(coming.popleft())
            one.read(tick)
            tick += period
        while coming and coming[0].arrived <= one.clock:
            one.add(coming.popleft())
        for job in one.batch():
            latency[place[id(job)]] = 1000 * (one.clock - job.arrived)
            index[place[id(job)]] = controller.index
            answered += 1
        if controller.index != before:
            changes.append((one.clock, controller.index))
    return Outcome(times, latency, index, changes)


def surge(base: float, start: float, end: float, factor: float = 10.0, ramp: float = 2.0) -> Callable[[float], float]:
    """A rate that rises from `base` by a factor, with ramps of some seconds, and falls again."""

    def rate(t: float) -> float:
        up = np.clip((t - start) / ramp, 0, 1) * np.clip((end - t) / ramp, 0, 1)
        return float(base * (1 + (factor - 1) * up))

    return rate


def fixed(index: int, target: float) -> Controller:
    """A server with a fixed threshold."""
    return Controller((CURVE[index],), target)


def row(peak: float, make: Callable[[], Controller], seeds: int = 8) -> np.ndarray:
    """Means over seeds: p99 and share of the time within the target in a surge of 60 s, loss in it and outside, changes."""
    rows = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        times = arrivals(surge(peak / 10, 20, 80), 110, rng)
        controller = make()
        one = simulate(times, controller, rng)
        inside = (one.arrival >= 20) & (one.arrival < 80)
        loss = 100 * (CURVE[0].score - np.array([p.score for p in controller.points])[one.index])
        within = one.time_within(controller.target_ms, 20, 80)
        rows.append((one.p99(20, 80), within, loss[inside].mean(), loss[~inside].mean(), len(one.changes)))
    return np.mean(rows, axis=0)


if __name__ == "__main__":
    TARGET = 40.0
    print(f"target {TARGET:g} ms; 10 % of the peak before and after")
    print(f"{'peak/s':>7} {'server':>12} {'p99':>9} {'within':>7} {'loss in surge':>14} {'outside':>8} {'changes':>8}")
    for peak in (40, 50, 60, 70, 80, 90, 100):
        for name, make in (
            ("adaptive", lambda: Controller(CURVE, TARGET)),
            ("8.8 ms", lambda: fixed(2, TARGET)),
            ("6.0 ms", lambda: fixed(6, TARGET)),
            ("full depth", lambda: fixed(0, TARGET)),
        ):
            p99, within, inside, outside, changes = row(peak, make)
            print(f"{peak:>7} {name:>12} {p99:>6.0f} ms {within:>7.1%} {inside:>14.2f} {outside:>8.2f} {changes:>8.1f}")
