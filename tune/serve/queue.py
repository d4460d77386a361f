"""What waits in a replica: the rows of ordinary requests in their order, and large requests, which take turns behind them."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import math
from collections.abc import Hashable, Sequence
from typing import Any

#: Padding of a batch in per cent of its tokens, above which a longer or shorter row waits for the next batch.
MOST_PADDING = 20

#: Waiting rows that are looked at for a batch, per row that it may have.
REACH = 8

#: Rows of ordinary requests per row of large ones, while both wait.
TURNS = 4


@dataclasses.dataclass(frozen=True)
class Row:
    """An encoded row: its token ids, and other inputs of the same length by name."""

    inputs: Any
    length: int


@dataclasses.dataclass(eq=False)
class Job:
    """A request, with the results of its rows.

    Attributes:
        rows: Its rows.
        exits: The exit criterion that it asks for; None: that of the operating point.
        future: Where its results go.
        arrived: When it arrived, in seconds of the engine's clock.
        large: Whether it has more rows than any operating point answers in time.
        results: The results of its rows; None: not yet there.
        open: Number of rows without a result.
        places: The rows of a large request that wait, the next one last.
    """

    rows: Sequence[Row]
    exits: Any
    future: asyncio.Future[list[dict[str, Any]]]
    arrived: float
    large: bool = False

    def __post_init__(self) -> None:
        self.results: list[dict[str, Any] | None] = [None] * len(self.rows)
        self.open = len(self.rows)
        self.places: list[int] = []
        if self.large:  # neighbours of equal length need no padding
            self.places = sorted(range(len(self.rows)), key=lambda place: -self.rows[place].length)


#: A row in the queue: its request, and its place there.
Waiting = tuple[Job, int]


class Queue:
    """The waiting rows of one replica.

    Rows of ordinary requests are taken first, in the order of their arrival. Large requests take turns with each other, and
    get one row for :data:`TURNS` of ordinary requests, or whatever these leave: they neither hold up nor starve.
    """

    def __init__(self) -> None:
        self._ordinary: collections.deque[Waiting] = collections.deque()
        self._large: collections.deque[Job] = collections.deque()
        self._credit = 0  # rows of ordinary requests since a large one had its turn

    def __len__(self) -> int:
        return self.ordinary + self.large

    @property
    def ordinary(self) -> int:
        """Waiting rows of ordinary requests."""
        return len(self._ordinary)

    @property
    def large(self) -> int:
        """Waiting rows of large requests."""
        return sum(len(job.places) for job in self._large)

    @property
    def large_requests(self) -> int:
        """Large requests with waiting rows."""
        return len(self._large)

    @property
    def oldest(self) -> float | None:
        """When the oldest waiting ordinary request arrived; None: none waits."""
        return self._ordinary[0][0].arrived if self._ordinary else None

    def add(self, job: Job) -> None:
        """Put a request into the queue."""
        if job.large:
            self._large.append(job)
        else:
            self._ordinary.extend((job, place) for place in range(len(job.rows)))

    def drop(self, job: Job) -> None:
        """Remove the waiting rows of a request."""
        if job.large:
            job.places.clear()
            self._large = collections.deque(other for other in self._large if other is not job)
        else:
            self._ordinary = collections.deque(waiting for waiting in self._ordinary if waiting[0] is not job)

    def take(self, most: int, most_large: int) -> list[Waiting]:
        """Take the rows of the next batch; the queue is not empty.

        Args:
            most: Most rows of a batch of ordinary requests.
            most_large: Most rows of a batch of a large request.
        """
        if self._ordinary and (not self._large or self._credit < TURNS * most_large):
            batch = form_batch(self._ordinary, most)
            self._credit += len(batch) if self._large else 0
            return batch
        self._credit = 0
        job = self._large.popleft()
        batch = [(job, job.places.pop()) for _ in range(min(most_large, len(job.places)))]
        if job.places:
            self._large.append(job)
        return batch


def form_batch(queue: collections.deque[Waiting], most: int) -> list[Waiting]:
    """Take the rows of the next batch: the first one, and later ones with its exit criterion and a similar length.

    Args:
        queue: The waiting rows; not empty. It is changed.
        most: Most rows of a batch.

    Returns:
        The batch; no longer in the queue.
    """
    first = queue.popleft()
    key: Hashable = first[0].exits
    batch: list[Waiting] = [first]
    passed: list[Waiting] = []
    longest = tokens = first[0].rows[first[1]].length
    for _ in range(min(len(queue), REACH * most)):
        if len(batch) == most:
            break
        job, place = waiting = queue.popleft()
        length = job.rows[place].length
        padded = max(longest, length) * (len(batch) + 1)
        if job.exits == key and 100 * padded <= (100 + MOST_PADDING) * (tokens + length):
            batch.append(waiting)
            longest, tokens = max(longest, length), tokens + length
        else:
            passed.append(waiting)
    queue.extendleft(reversed(passed))
    return batch


def batch_size(waiting: int, fixed: float) -> int:
    """Choose the rows of a batch so that what waits is answered with the least mean delay.

    A batch of k rows takes the time of `fixed` + k rows, and its rows are answered together. Of w waiting rows, the mean
    delay is (`fixed` + k) (w / k + 1) / 2: the least at k = √(`fixed` w).

    Args:
        waiting: Number of waiting rows.
        fixed: The time that a batch takes beyond that of its rows, in rows.
    """
    return max(1, round(math.sqrt(fixed * waiting)))
