"""Load control: how fast to exit at the present load, from the exported model's curve of score against milliseconds.

The controller is a deterministic function of the readings that it is given; it has no clock, threads or I/O of its own.
docs/decisions/load-control.md gives the reasons and the measurements.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from leebert.errors import ConfigError
from leebert.operating_point import check_max_loss

#: Of points that differ by less than this share in milliseconds, a ladder has only the best one.
SPACING = 0.05

#: ln 100: the 99th percentile of an exponential distribution, in units of its mean.
_P99 = math.log(100)


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """A threshold of one exit criterion, and what it gives on the samples of the calibration.

    Attributes:
        threshold: The threshold; None: the criterion has none, or its default.
        score: The score, a fraction.
        speed_up: The layer speed-up.
        milliseconds: Mean time per text at batch size 1.
    """

    threshold: float | None
    score: float
    speed_up: float
    milliseconds: float


@dataclasses.dataclass(frozen=True)
class Target:
    """The aim of load control.

    Attributes:
        p99_ms: Largest 99th percentile of the time between a request's arrival and its answer, in milliseconds.
        max_loss: Largest drop in score against the full model, in points.
    """

    p99_ms: float
    max_loss: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.p99_ms) and self.p99_ms > 0):
            raise ConfigError(f"p99 target {self.p99_ms:g}: should be a number of milliseconds above 0, such as 20")
        check_max_loss(self.max_loss)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Constants of the controller; the defaults are those of docs/decisions/load-control.md.

    Attributes:
        headroom: Share of the target that a replica aims at: it does not see the time of the network and of HTTP.
        rise_s: Time constant of the average of the arrival rate that makes the server faster.
        fall_s: Time constant of the average that lets it become slower again.
        large_s: Time constant of the average of the rows of large requests.
        utilisation: Share of the time that ordinary and large requests together may take.
        band: A slower point is taken back only if the arrival rate is below this share of its capacity.
        hold_s: Shortest time between two steps towards the fullest point, each of at most half the way, rounded up; doubles after a
            step that was taken back.
        longest_hold_s: Upper end of that time.
        backlog: Share of the aim that working off the waiting texts may take before the server speeds up at once.
        variation: Squared coefficient of variation of the time per text, for the prediction.
        longest: Time of a long text that passes all layers, relative to the mean of texts that do.
        caution: Factor on the capacities after a window in which too many requests took too long.
        relief_s: Time constant with which that factor returns to 1.
        judged_s: Time after a change before the latencies of the new point are judged.
    """

    headroom: float = 0.9
    rise_s: float = 0.5
    fall_s: float = 4.0
    large_s: float = 30.0
    utilisation: float = 0.9
    band: float = 0.85
    hold_s: float = 3.0
    longest_hold_s: float = 60.0
    backlog: float = 0.6
    variation: float = 0.5
    longest: float = 1.5
    caution: float = 0.85
    relief_s: float = 120.0
    judged_s: float = 1.0


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a server measured since the reading before.

    Attributes:
        time: Seconds of a monotonic clock.
        arrived: Texts of ordinary requests that arrived.
        waiting: Texts of ordinary requests that wait now.
        finished: Ordinary requests that were answered.
        slow: Of these, requests that took longer than the aim (:attr:`Controller.aim_ms`).
        busy_ms: Time that the model ran.
        expected_ms: Time that the same texts take by the curve, at the points that they were given.
        large: Texts of large requests that arrived: those that no point answers within the target. They wait behind others.
    """

    time: float
    arrived: int
    waiting: int
    finished: int = 0
    slow: int = 0
    busy_ms: float = 0.0
    expected_ms: float = 0.0
    large: int = 0


@dataclasses.dataclass(frozen=True)
class Change:
    """A change of the operating point: when, from and to which place on the ladder, and why."""

    time: float
    before: int
    after: int
    reason: str


def ladder(points: Sequence[Any], max_loss: float) -> tuple[OperatingPoint, ...]:
    """Select the points between which load control moves.

    Args:
        points: A curve of an exported model (objects with `threshold`, `score`, `speed_up` and `milliseconds`), the
            fullest point first.
        max_loss: Largest drop in score against the fullest point, in points.

    Returns:
        The slowest point first. Each later one is faster and scores less; none loses more than `max_loss`.

    Raises:
        ConfigError: The curve is empty, or a point lacks its score or milliseconds.
    """
    if not points:
        raise ConfigError("the exported model has no curve of score against milliseconds: export it with samples")
    full = points[0]
    rungs: list[OperatingPoint] = []
    nearest = 0.0  # milliseconds up to which a point replaces the one before
    for point in sorted(points, key=lambda one: (_number(one, "milliseconds"), -_number(one, "score"))):
        if 100 * (full.score - point.score) > max_loss + 1e-9:
            continue
        if rungs and point.score <= rungs[-1].score:
            continue  # slower and no better
        rung = OperatingPoint(point.threshold, point.score, point.speed_up, point.milliseconds)
        if point.milliseconds >= nearest:
            rungs.append(rung)
            nearest = (1 + SPACING) * point.milliseconds
        elif len(rungs) > 1:  # the fastest one stays: it holds the highest load
            rungs[-1] = rung
    return tuple(reversed(rungs))


def _number(point: Any, name: str) -> float:
    value = getattr(point, name)
    if value is None or not math.isfinite(value):
        raise ConfigError(f"threshold {point.threshold:g}: the curve has no {name}: export the model with samples")
    return float(value)


class Controller:
    """Moves along a ladder of operating points as the load grows and falls.

    Feed-forward: each point has a capacity, the arrival rate at which the predicted 99th percentile meets the target.
    The server takes the fullest point whose capacity covers the arrival rate, and whose throughput covers that of large
    requests too, over half a minute. Feedback: texts that wait make it faster
    at once, and requests that took too long reduce all capacities. Averages of two time constants, a dead band and
    holding times that double after a step that was taken back keep it from oscillating.

    Args:
        points: The ladder (:func:`ladder`), the slowest point first.
        target_ms: Target of the 99th percentile.
        settings: Constants.
    """

    def __init__(self, points: Sequence[OperatingPoint], target_ms: float, settings: Settings | None = None) -> None:
        if not points:
            raise ConfigError("load control needs at least one operating point")
        self.points = tuple(points)
        self.target_ms = target_ms
        self.settings = settings or Settings()
        self.index = 0
        #: Measured milliseconds per text relative to the curve's: batches, another machine, other texts.
        self.pace = 1.0
        self.rate_fast = self.rate_slow = self.rate_large = 0.0
        self.correction = 1.0
        self.changes = 0
        self.last_change: Change | None = None
        self._time: float | None = None
        self._changed = self._lowered = -math.inf
        self._hold = self.settings.hold_s
        self._finished = self._slow = 0.0

    @property
    def aim_ms(self) -> float:
        """The 99th percentile that the replica aims at."""
        return self.settings.headroom * self.target_ms

    @property
    def point(self) -> OperatingPoint:
        """The operating point in use."""
        return self.points[self.index]

    def capacity(self, index: int) -> float:
        """Predict the arrival rate, in texts per second, at which a point's 99th percentile meets the target.

        The prediction is that of a queue with one server (Pollaczek and Khinchine): a text that passes all layers, after
        a wait whose tail is exponential. Of a target below a full pass a tenth of the server is granted.
        """
        own = self.points[index].milliseconds * self.pace
        slack = self.aim_ms - self.settings.longest * self.points[0].milliseconds * self.pace
        ratio = max(slack, 0.1 * own) / (_P99 * own * (1 + self.settings.variation) / 2)
        return self.correction * ratio / (1 + ratio) * 1000 / own

    def update(self, reading: Reading) -> int:
        """Take a reading into account.

        Args:
            reading: What was measured since the last reading.

        Returns:
            The place on the ladder of the point to use from now on.
        """
        self._average(reading)
        faster = self._index_for(self.rate_fast, share=1.0)
        pressed = self._index_for_backlog(reading.waiting)
        if self._missed():
            self.correction = max(0.2, self.correction * self.settings.caution)
            faster = max(faster, min(self.index + 1, len(self.points) - 1))
            reason = "latency"
        else:
            reason = "backlog" if pressed > faster else "arrivals"
        if (after := max(faster, pressed)) > self.index:
            self._move(reading.time, after, reason)
        elif self.index and reading.time - max(self._changed, self._lowered) >= self._hold:
            calm = self._index_for(max(self.rate_fast, self.rate_slow), share=self.settings.band)
            slower = self.index - (self.index - calm + 1) // 2
            if slower < self.index and self._index_for_backlog(2 * reading.waiting, start=slower) <= slower:
                self._move(reading.time, slower, "less load")
        return self.index

    def press(self, time: float, waiting: int) -> int:
        """Become faster at once if the waiting texts take too long; between two readings, when a batch is formed.

        Args:
            time: Seconds of the readings' clock.
            waiting: Texts that wait now.

        Returns:
            The place on the ladder of the point to use from now on.
        """
        if (pressed := self._index_for_backlog(waiting)) > self.index:
            self._move(time, pressed, "backlog")
        return self.index

    def _average(self, reading: Reading) -> None:
        """Update the averages of the arrival rate and of the pace."""
        elapsed = 0.0 if self._time is None else reading.time - self._time
        self._time = reading.time
        if elapsed > 0:
            rate = reading.arrived / elapsed
            self.rate_fast += (rate - self.rate_fast) * -math.expm1(-elapsed / self.settings.rise_s)
            self.rate_slow += (rate - self.rate_slow) * -math.expm1(-elapsed / self.settings.fall_s)
            self.rate_large += (reading.large / elapsed - self.rate_large) * -math.expm1(
                -elapsed / self.settings.large_s
            )
            self.correction += (1 - self.correction) * -math.expm1(-elapsed / self.settings.relief_s)
            kept = math.exp(-elapsed / self.settings.fall_s)
            self._finished, self._slow = self._finished * kept, self._slow * kept
        if reading.expected_ms > 0 and reading.busy_ms > 0:
            weight = min(
                1.0, max(reading.busy_ms, reading.expected_ms) / 2000
            )  # two seconds of work replace the estimate
            self.pace += (reading.busy_ms / reading.expected_ms - self.pace) * weight
        if reading.time - self._changed >= self.settings.judged_s:
            self._finished += reading.finished
            self._slow += reading.slow

    def _missed(self) -> bool:
        """Tell whether clearly more than one request in a hundred took too long since the last change."""
        missed = self._slow > 0.01 * self._finished + 2 * math.sqrt(0.01 * self._finished) + 1
        if missed:
            self._finished = self._slow = 0.0
            self._hold_longer()
        return missed

    def _index_for(self, rate: float, share: float) -> int:
        """The fullest point whose capacity, times a share, covers a rate; the fastest if none does."""
        for index in range(len(self.points)):
            if rate <= share * self.capacity(index) and self._has_time_for_large(index, rate, share):
                return index
        return len(self.points) - 1

    def _has_time_for_large(self, index: int, rate: float, share: float) -> bool:
        """Whether a point leaves enough time for large requests, beside an arrival rate of ordinary ones."""
        each = self.points[index].milliseconds * self.pace / 1000
        return self.rate_large < 1 or (rate + self.rate_large) * each <= share * self.settings.utilisation

    def _index_for_backlog(self, waiting: int, start: int | None = None) -> int:
        """The fullest point, from one on, at which the waiting texts take at most their share of the target."""
        allowed = self.settings.backlog * self.aim_ms
        first = self.index if start is None else start
        for index in range(first, len(self.points)):
            if waiting <= 1 or waiting * self.points[index].milliseconds * self.pace <= allowed:
                return index
        return len(self.points) - 1

    def _move(self, time: float, after: int, reason: str) -> None:
        if after > self.index and time - self._lowered <= 2 * self._hold:
            self._hold_longer()  # the step back was too early
        elif after < self.index:
            if time - self._changed > 2 * self._hold:
                self._hold = max(self.settings.hold_s, self._hold / 2)
            self._lowered = time
        self.last_change = Change(time, self.index, after, reason)
        self.changes += 1
        self.index, self._changed = after, time
        self._finished = self._slow = 0.0

    def _hold_longer(self) -> None:
        self._hold = min(self.settings.longest_hold_s, 2 * self._hold)
