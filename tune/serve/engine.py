"""Dynamic batching: requests wait in one queue, a thread takes what waits whenever the model is free.

Rows of several requests share a batch if they have the same exit criterion; samples leave a batch at their exit
(compaction in `leebert.exported`). No request waits for others to fill a batch.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tune.serve.control import Controller, OperatingPoint, Reading, Target
from tune.serve.metrics import Metrics
from tune.serve.queue import Job, Queue, Row, Waiting, batch_size
from tune.serve.requests import Limits, Refusal

log = logging.getLogger(__name__)

#: Seconds between two readings of load control.
PERIOD = 0.1

#: Shares of the target that a batch may take: of ordinary requests, and of a large one, for which others wait.
SHARE, LARGE_SHARE = 0.5, 0.25


class Runner(Protocol):
    """What the engine needs of a model."""

    def run(self, rows: Sequence[Row], exits: Any) -> list[dict[str, Any]]:
        """Predict a batch: label, probability, exit_layer and layers_saved of each row."""
        ...

    def exits_at(self, threshold: float | None) -> Any:
        """The server's exit criterion at a threshold; None: at its own."""
        ...

    def describe(self, exits: Any) -> dict[str, Any]:
        """Criterion, threshold and, if it has one, patience, for the answer."""
        ...


class Engine:
    """The queue of one replica, the thread that runs its model, and its load control.

    Args:
        runner: The model.
        points: Operating points of load control, the slowest first; one point: a fixed threshold.
        target: The aim; None: the threshold is fixed.
        limits: Limits.
        metrics: Where to count.
        fixed: The time that a batch takes beyond that of its rows, in rows (:meth:`tune.serve.model.ServedModel.warm_up`).
        clock: Seconds of a monotonic clock.
    """

    def __init__(
        self,
        runner: Runner,
        points: Sequence[OperatingPoint],
        target: Target | None,
        limits: Limits,
        metrics: Metrics,
        fixed: float = 0.1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.runner, self.limits, self.metrics, self.target = runner, limits, metrics, target
        self.controller = Controller(points, target.p99_ms if target else 1000.0)
        self._clock, self._fixed = clock, fixed
        self._queue = Queue()
        self._wake = threading.Condition()
        self._closed = False
        self._arrived = self._arrived_large = self._finished = self._slow = 0
        self._busy_ms = self._expected_ms = self._model_ms = self._busy_share = 0.0
        self._read = clock()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def submit(self, rows: Sequence[Row], exits: Any) -> asyncio.Future[list[dict[str, Any]]]:
        """Put the rows of a request into the queue; call it in the event loop.

        Args:
            rows: The rows.
            exits: The request's exit criterion; None: the one of the operating point when its batch starts.

        Returns:
            A future with one prediction per row. Cancel it if the client has gone.

        Raises:
            Refusal: The queue is full, with status 429; or the server is shutting down, with 503.
        """
        future: asyncio.Future[list[dict[str, Any]]] = asyncio.get_running_loop().create_future()
        if not rows:
            future.set_result([])
            return future
        with self._wake:
            large = self._admit(len(rows))
            job = Job(rows, exits, future, self._clock(), large)
            self._queue.add(job)
            if large:
                self._arrived_large += len(rows)
            else:
                self._arrived += len(rows)
            self._wake.notify()
        future.add_done_callback(lambda done: self._drop(job) if done.cancelled() else None)
        return future

    def admit(self, rows: int) -> None:
        """Refuse a request for which there is no room, before it is tokenised.

        Args:
            rows: Number of its rows.

        Raises:
            Refusal: As :meth:`submit`.
        """
        with self._wake:
            self._admit(rows)

    def _admit(self, rows: int) -> bool:
        """Refuse a request for which there is no room; returns whether it is a large one."""
        large = rows > self._most(self.controller.points[-1], SHARE)
        if self._closed:
            raise Refusal(503, "the server is shutting down: send the request to another one", retry_after=1)
        waiting = self._queue.large if large else self._queue.ordinary
        expected = self._wait(large)
        if waiting + rows > self.limits.waiting or (waiting and expected > self.limits.wait_ms):
            kind = "texts of large requests" if large else "texts"
            raise Refusal(
                429,
                f"too many requests: {waiting} waiting {kind}, a wait of {expected:.0f} ms; send the request again later",
                retry_after=max(1, math.ceil(expected / 1000)),
            )
        return large

    def _wait(self, large: bool) -> float:
        """Milliseconds until the first row of a newcomer is predicted, at the fastest point."""
        fastest, queue = self.controller.points[-1], self._queue
        waiting = queue.ordinary
        if large:  # one turn of each other large request
            waiting += queue.large_requests * self._most(fastest, LARGE_SHARE)
        oldest = 0.0 if queue.oldest is None else 1000 * (self._clock() - queue.oldest)
        return max(waiting * fastest.milliseconds * self.controller.pace, oldest)

    def _drop(self, job: Job) -> None:
        """Remove the waiting rows of a request that has failed, or whose client has gone."""
        with self._wake:
            self._queue.drop(job)

    def tick(self) -> None:
        """Give load control a reading and set the gauges; every :data:`PERIOD`."""
        now = self._clock()
        with self._wake:
            waiting = len(self._queue)
            reading = Reading(
                now, self._arrived, self._queue.ordinary, self._finished, self._slow, self._busy_ms, self._expected_ms,
                self._arrived_large,
            )  # fmt: skip
            model_ms = self._model_ms
            self._arrived = self._arrived_large = self._finished = self._slow = 0
            self._busy_ms = self._expected_ms = self._model_ms = 0.0
            self.controller.update(reading)
        if (elapsed := now - self._read) > 0:
            share = min(1.0, model_ms / 1000 / elapsed)
            self._busy_share += (share - self._busy_share) * min(1.0, elapsed / 2)
        self._read = now
        self._gauges(waiting)

    def _gauges(self, waiting: int) -> None:
        control, metrics = self.controller, self.metrics
        metrics.set("waiting_texts", waiting)
        metrics.set("busy_ratio", round(self._busy_share, 4))
        metrics.set("arrivals_per_second", round(control.rate_slow + control.rate_large, 3))
        metrics.set("pace", round(control.pace, 4))
        if control.point.threshold is not None:
            metrics.set("threshold", control.point.threshold)
        metrics.set("layer_speed_up", control.point.speed_up)
        metrics.set("point_milliseconds", control.point.milliseconds)
        metrics.set("score", control.point.score)
        metrics.set("score_floor", control.points[-1].score)
        metrics.set("point_changes_total", control.changes)

    @property
    def busy(self) -> float:
        """Share of the last seconds in which the model ran."""
        return self._busy_share

    @property
    def alive(self) -> bool:
        """Whether the thread that runs the model lives."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Refuse new requests; those in the queue are still answered."""
        with self._wake:
            self._closed = True
            self._wake.notify()

    def join(self, seconds: float) -> bool:
        """Wait until the queue is empty. Returns whether it is."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        """Run batches until the engine is closed and its queue empty."""
        while (taken := self._take()) is not None:
            batch, exits, point = taken
            started = self._clock()
            try:
                predictions: Sequence[dict[str, Any]] | Exception = self.runner.run(
                    [job.rows[place] for job, place in batch], exits
                )
            except Exception as error:  # no fault of the requests, which were checked before
                log.error("a batch of %d failed", len(batch), exc_info=error)
                predictions = Refusal(500, "the server failed to run the model; its log has the details")
            self._record(batch, predictions, exits, started, point)

    def _take(self) -> tuple[list[Waiting], Any, OperatingPoint | None] | None:
        """Wait for rows, and take those of the next batch; with the exit criterion, and the point unless it was asked for."""
        with self._wake:
            while not self._queue:
                if self._closed:
                    return None
                self._wake.wait()
            self.controller.press(self._clock(), self._queue.ordinary)
            point = self.controller.point
            batch = self._queue.take(*self._sizes(point))
        asked = batch[0][0].exits
        return (batch, self.runner.exits_at(point.threshold), point) if asked is None else (batch, asked, None)

    def _sizes(self, point: OperatingPoint) -> tuple[int, int]:
        """Most rows of the next batch of ordinary requests, and of a large one."""
        queue = self._queue
        return (
            min(batch_size(queue.ordinary, self._fixed), self._most(point, SHARE)),
            min(batch_size(queue.large, self._fixed), self._most(point, LARGE_SHARE)),
        )

    def _most(self, point: OperatingPoint, share: float) -> int:
        """Most rows of a batch: with a target, those that take a share of it."""
        if self.target is None:
            return self.limits.batch
        each = point.milliseconds * self.controller.pace
        return int(min(self.limits.batch, max(1.0, share * self.target.p99_ms // each)))

    def _record(
        self,
        batch: Sequence[Waiting],
        predictions: Sequence[dict[str, Any]] | Exception,
        exits: Any,
        started: float,
        point: OperatingPoint | None,
    ) -> None:
        """Count a batch and hand its predictions to the requests."""
        now = self._clock()
        self.metrics.observe("batch_texts", len(batch))
        self.metrics.observe("batch_seconds", now - started)
        given = {} if isinstance(predictions, Exception) else self.runner.describe(exits)
        finished: dict[Job, Exception | None] = {}
        for at, (job, place) in enumerate(batch):
            self.metrics.observe("queue_seconds", started - job.arrived)
            job.open -= 1
            if isinstance(predictions, Exception):
                finished[job] = predictions
                continue
            self.metrics.add("texts_total", exit_layer=predictions[at]["exit_layer"])
            job.results[place] = {"row": place} | predictions[at] | given
            if not job.open:
                finished[job] = None
        aim = self.controller.aim_ms / 1000 if self.target else math.inf
        judged = [job for job in finished if not job.large]  # no point answers a large one within the target
        with self._wake:
            self._model_ms += 1000 * (now - started)
            if point is not None:  # the pace is that of the operating points
                self._busy_ms += 1000 * (now - started)
                self._expected_ms += len(batch) * point.milliseconds
            self._finished += len(judged)
            self._slow += sum(now - job.arrived > aim for job in judged)
        for job in finished:
            if job.open:  # it has failed
                self._drop(job)
        loop = batch[0][0].future.get_loop()
        loop.call_soon_threadsafe(_resolve, finished)


def _resolve(finished: Mapping[Job, Exception | None]) -> None:
    for job, error in finished.items():
        if job.future.done():
            continue
        if error is not None:
            job.future.set_exception(error)
        else:
            job.future.set_result([result for result in job.results if result is not None])
