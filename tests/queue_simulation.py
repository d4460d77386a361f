"""A discrete-event simulation of a server with one queue, for the tests and first figures of load control.

`python tests/queue_simulation.py` prints the table of docs/decisions/load-control.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from tune.serve.control import Controller, OperatingPoint, Reading

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


def simulate(
    times: np.ndarray,
    controller: Controller,
    rng: np.random.Generator,
    *,
    period: float = 0.1,
    most: int = 8,
    pace: float = 1.0,
    batch_gain: float = 0.1,
) -> Outcome:
    """Run a server that takes whatever waits, up to `most` texts, whenever its model is free."""
    points, target = controller.points, controller.target_ms
    full = CURVE[0].milliseconds
    latency, index = np.zeros(len(times)), np.zeros(len(times), int)
    changes: list[tuple[float, int]] = []
    clock, taken, tick, counted = 0.0, 0, period, 0
    ends: list[tuple[float, float]] = []  # when batches end, and the requests' latencies, for the readings
    busy = expected = 0.0

    def read_until(now: float) -> None:
        nonlocal tick, counted, busy, expected, ends
        while tick <= now:
            before = controller.index
            arrived = int(np.searchsorted(times, tick))
            done = [ms for end, ms in ends if end <= tick]
            ends = [(end, ms) for end, ms in ends if end > tick]
            waiting = max(0, arrived - taken)
            controller.update(
                Reading(tick, arrived - counted, waiting, len(done), sum(ms > target for ms in done), busy, expected)
            )
            counted, busy, expected = arrived, 0.0, 0.0
            if controller.index != before:
                changes.append((tick, controller.index))
            tick += period

    while taken < len(times):
        clock = max(clock, times[taken])
        read_until(clock)
        waiting = int(np.searchsorted(times, clock, side="right")) - taken
        before = controller.index
        controller.press(clock, waiting)
        if controller.index != before:
            changes.append((clock, controller.index))
        size = min(waiting, most)
        point = points[controller.index]
        spread = rng.gamma(4.0, 0.25, size)  # lengths of texts and exits of samples
        cost = np.minimum(point.milliseconds * spread, 1.5 * full).sum() * pace * (1 - batch_gain * (1 - 1 / size))
        end = clock + cost / 1000
        mine = slice(taken, taken + size)
        latency[mine], index[mine] = 1000 * (end - times[mine]), controller.index
        ends += [(end, ms) for ms in latency[mine]]
        busy, expected = busy + cost, expected + size * point.milliseconds
        taken, clock = taken + size, end
    read_until(clock)
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
