"""An open-loop load generator: requests arrive at random times (Poisson), whatever the server's answers take.

Latencies count from the scheduled arrival, so that a server that delays the generator does not look faster.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np

from leebert.errors import ConfigError, DataError

#: Seconds after which a request counts as failed, with status 0.
TIMEOUT_S = 10.0

#: Names of the column of labels, in the order in which they are tried.
LABELS = ("label", "Quality", "gold_label", "is_duplicate")


@dataclasses.dataclass(frozen=True)
class Sample:
    """A request's body and the name of its right label; None: unknown."""

    body: bytes
    label: str | None


@dataclasses.dataclass(frozen=True)
class Surge:
    """An arrival rate that rises and falls once.

    Attributes:
        rate: Requests per second before and after.
        factor: Times that rate during the surge; 1: a steady load.
        before: Seconds before the surge.
        during: Seconds of the surge, ramps included.
        after: Seconds after it.
        ramp: Seconds in which the rate rises, and in which it falls.
    """

    rate: float
    factor: float = 1.0
    before: float = 15.0
    during: float = 30.0
    after: float = 15.0
    ramp: float = 2.0

    @property
    def seconds(self) -> float:
        """The whole duration."""
        return self.before + self.during + self.after

    def at(self, times: np.ndarray) -> np.ndarray:
        """The rate at some times (s)."""
        ramp = max(self.ramp, 1e-9)
        up = np.clip((times - self.before) / ramp, 0, 1)
        down = np.clip((self.before + self.during - times) / ramp, 0, 1)
        return self.rate * (1 + (self.factor - 1) * np.minimum(up, down))

    def arrivals(self, seed: int) -> np.ndarray:
        """Draw arrival times (s): a Poisson process at this rate, by thinning."""
        rng = np.random.default_rng(seed)
        highest = self.rate * max(self.factor, 1.0)
        count = rng.poisson(highest * self.seconds)
        times = np.sort(rng.random(count) * self.seconds)
        return times[rng.random(count) * highest <= self.at(times)]


def read_samples(path: Path, about: dict[str, Any], label: str | None = None) -> list[Sample]:
    """Read the requests to send from a file of texts.

    Args:
        path: A file with named columns (CSV, TSV, JSON lines, Parquet).
        about: What the server says of its model at `/`.
        label: The column of labels; None: one of :data:`LABELS`, if there is one.

    Raises:
        DataError: The file lacks a column, or has no rows.
    """
    from leebert.data.readers import Columns, column_names, read_rows

    texts = tuple(tuple(names) for names in about["text_columns"])
    wanted = label or next((name for name in LABELS if name in column_names(path)), None)
    columns = Columns((*texts, *([(wanted,)] if wanted else ())), "rename it in the file")
    samples = []
    for row in read_rows(path, columns):
        record = {names[0]: str(value) for names, value in zip(texts, row.values, strict=False)}
        right = _label(row.values[-1], about["labels"]) if wanted else None
        body = json.dumps({"dataframe_records": [record]}, ensure_ascii=False).encode()
        samples.append(Sample(body, right))
    if not samples:
        raise DataError(f"{path}: no rows")
    return samples


def _label(value: Any, labels: Sequence[str]) -> str | None:
    """The name of a label, of which files hold the name or the number."""
    if value is None or str(value) in labels:
        return None if value is None else str(value)
    text = str(value).strip()
    return labels[int(text)] if text.isdigit() and int(text) < len(labels) else text


def about_server(address: str) -> dict[str, Any]:
    """Ask a server for its model.

    Raises:
        ConfigError: No server answers there.
    """
    import urllib.request

    try:
        with urllib.request.urlopen(f"{address}/", timeout=10) as answer:
            about: dict[str, Any] = json.load(answer)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{address}: no server of `leebert-tune serve` answers there: {error}") from None
    return about


class Client(asyncio.Protocol):
    """A connection that sends one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._buffer = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Send a request, after the answer to the one before.

        Args:
            request: All its bytes (:func:`http_request`).

        Returns:
            A future with status and body of the answer.
        """
        assert self.transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._buffer = b""
        self.transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        """Read the answer."""
        self._buffer += data
        head, complete, body = self._buffer.partition(b"\r\n\r\n")
        if not complete or self._answer is None or self._answer.done():
            return
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
        if len(body) >= length:
            self._answer.set_result((int(head[9:12]), body[:length]))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the open request."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("the server closed the connection"))


async def drive(
    address: str,
    samples: Sequence[Sample],
    times: np.ndarray,
    seed: int,
    progress: Callable[[float], None] | None = None,
) -> list[dict[str, Any]]:
    """Send requests at the given times.

    Args:
        address: The server, such as http://127.0.0.1:8000.
        samples: The requests, drawn with replacement.
        times: (N,) arrival times in seconds.
        seed: Seed of the draw.
        progress: Called with the time of each request that is sent.

    Returns:
        Per request: arrival (s), latency_ms, status (0: no answer), threshold, exit_layer, layers_saved and correct.
    """
    host, port = place_of(address)
    order = np.random.default_rng(seed).integers(len(samples), size=len(times))
    requests = [http_request(host, sample.body) for sample in samples]
    loop, idle = asyncio.get_running_loop(), list[Client]()
    rows: list[dict[str, Any]] = []

    async def one(at: float, which: int, due: float) -> None:
        client, status, body = None, 0, b""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while idle and (client is None or client.transport is None or client.transport.is_closing()):
                    client = idle.pop()
                if client is None or client.transport is None or client.transport.is_closing():
                    _, client = await loop.create_connection(Client, host, port)
                status, body = await client.ask(requests[which])
        except (OSError, TimeoutError):
            if client is not None and client.transport is not None:
                client.transport.abort()
        else:
            idle.append(client)
        rows.append(_row(at, 1000 * (loop.time() - due), status, body, samples[which].label))

    start, tasks = loop.time() + 0.1, set[asyncio.Task[None]]()
    for at, which in zip(times.tolist(), order.tolist(), strict=True):
        if (wait := start + at - loop.time()) > 0:
            await asyncio.sleep(wait)
        if progress is not None:
            progress(at)
        task = asyncio.create_task(one(at, which, start + at))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    for client in idle:
        if client.transport is not None:
            client.transport.close()
    return sorted(rows, key=lambda row: row["arrival"])


def place_of(address: str) -> tuple[str, int]:
    """Split a server's address into host and port.

    Args:
        address: Such as http://127.0.0.1:8000.
    """
    url = urlsplit(address)
    return url.hostname or "127.0.0.1", url.port or 80


def http_request(host: str, body: bytes) -> bytes:
    """Make the bytes of an HTTP request.

    Args:
        host: The server's host.
        body: The body, JSON.
    """
    head = f"POST /invocations HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _row(at: float, latency: float, status: int, body: bytes, label: str | None) -> dict[str, Any]:
    answer = json.loads(body)["predictions"][0] if status == 200 else {}
    right = None if label is None or not answer else answer["label"] == label
    return {
        "arrival": at, "latency_ms": latency, "status": status, "threshold": answer.get("threshold"),
        "exit_layer": answer.get("exit_layer"), "layers_saved": answer.get("layers_saved"), "correct": right,
    }  # fmt: skip


def run_load(address: str, samples: Sequence[Sample], surge: Surge, seed: int = 0) -> list[dict[str, Any]]:
    """Drive a server with a load, in this process.

    Args:
        address: The server.
        samples: The requests.
        surge: The arrival rate.
        seed: Seed of arrivals and texts.
    """
    try:
        import uvloop

        factory: Any = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(drive(address.rstrip("/"), samples, surge.arrivals(seed), seed))


async def closed_loop(address: str, samples: Sequence[Sample], order: Iterator[int], clients: int) -> list[float]:
    """Send requests by clients that send the next one after each answer.

    Args:
        address: The server.
        samples: The requests.
        order: Which ones; all clients take from it.
        clients: Number of clients.

    Returns:
        The seconds of each request, in the order of the answers.

    Raises:
        ConfigError: The server answers another status than 200.
    """
    host, port = place_of(address)
    requests = [http_request(host, sample.body) for sample in samples]
    loop, times = asyncio.get_running_loop(), list[float]()

    async def one() -> None:
        _, client = await loop.create_connection(Client, host, port)
        for which in order:
            started = time.perf_counter()
            status, body = await client.ask(requests[which])
            times.append(time.perf_counter() - started)
            if status != 200:
                raise ConfigError(f"{address}: status {status}: {body.decode(errors='replace')}")
        assert client.transport is not None
        client.transport.close()

    await asyncio.gather(*(one() for _ in range(clients)))
    return times


def measure_capacity(address: str, samples: Sequence[Sample], clients: int = 16, seconds: float = 5.0) -> float:
    """Measure the texts per second of a server at saturation, by clients that send the next request at once.

    Args:
        address: The server.
        samples: The requests.
        clients: Number of clients.
        seconds: Duration.
    """
    rng, started = np.random.default_rng(0), time.perf_counter()

    def order() -> Iterator[int]:
        while time.perf_counter() - started < seconds:
            yield int(rng.integers(len(samples)))

    times = asyncio.run(closed_loop(address, samples, order(), clients))
    return len(times) / (time.perf_counter() - started)


def save(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write every request to a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        "arrival": pa.float64(), "latency_ms": pa.float64(), "status": pa.int16(), "threshold": pa.float64(),
        "exit_layer": pa.int16(), "layers_saved": pa.int16(), "correct": pa.bool_(),
    }  # fmt: skip
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in types.items()}
    pq.write_table(pa.table(columns), path)


def summary(rows: Sequence[dict[str, Any]], surge: Surge, target_ms: float | None = None) -> list[dict[str, Any]]:
    """Summarise the requests before, during and after the surge.

    Args:
        rows: The requests.
        surge: The load.
        target_ms: Target of the 99th percentile; None: not stated.

    Returns:
        Per phase: requests, answered, refused (429), failed, p50 and p99 in ms, mean exit layer, accuracy, and the share of
        seconds at whose end the p99 of the last five met the target.
    """
    edges = (0.0, surge.before, surge.before + surge.during, surge.seconds)
    names = ("before", "surge", "after") if surge.factor > 1 else ("steady",)
    spans = (
        list(zip(names, edges[:-1], edges[1:], strict=True)) if surge.factor > 1 else [("steady", 0.0, surge.seconds)]
    )
    return [_phase(name, rows, start, end, target_ms) for name, start, end in spans]


def _phase(
    name: str, rows: Sequence[dict[str, Any]], start: float, end: float, target_ms: float | None
) -> dict[str, Any]:
    own = [row for row in rows if start <= row["arrival"] < end]
    served = [row for row in own if row["status"] == 200]
    times = np.array([row["latency_ms"] for row in served])
    judged = [row["correct"] for row in served if row["correct"] is not None]
    values: dict[str, Any] = {
        "phase": name, "requests": len(own), "answered": len(served),
        "refused": sum(row["status"] == 429 for row in own),
        "failed": sum(row["status"] not in (200, 429) for row in own),
        "p50_ms": float(np.percentile(times, 50)) if len(times) else None,
        "p99_ms": float(np.percentile(times, 99)) if len(times) else None,
        "exit_layer": float(np.mean([row["exit_layer"] for row in served])) if served else None,
        "accuracy": float(np.mean(judged)) if judged else None,
    }  # fmt: skip
    if target_ms is not None:
        values["within_target"] = within_target(rows, start, end, target_ms)
    return values


def within_target(
    rows: Sequence[dict[str, Any]], start: float, end: float, target_ms: float, window: float = 5.0
) -> float:
    """Share of the seconds from `start` to `end` at whose end the p99 of the last seconds met a target.

    A request without an answer counts as one that missed it.

    Args:
        rows: The requests.
        start: Start of the interval in seconds.
        end: Its end.
        target_ms: The target.
        window: Seconds over which each p99 is taken.
    """
    arrival = np.array([row["arrival"] for row in rows])
    latency = np.array([row["latency_ms"] if row["status"] == 200 else np.inf for row in rows])
    met = []
    for at in np.arange(start + 1, end + 1e-6):
        inside = latency[(arrival >= at - window) & (arrival < at)]
        if len(inside):
            met.append(np.mean(inside > target_ms) <= 0.01)
    return float(np.mean(met)) if met else 1.0
