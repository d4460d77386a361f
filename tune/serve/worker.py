"""A replica's end of the connection: it reads requests, puts them into the engine's queue and sends the answers."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from leebert.errors import LeebertError
from tune.serve.engine import PERIOD, Engine, Runner
from tune.serve.metrics import Metrics
from tune.serve.queue import Row
from tune.serve.requests import Limits, Refusal, Request, error_body, read_request
from tune.serve.wire import ANSWER, CANCEL, DRAIN, HELLO, REQUEST, SNAPSHOT, STATUS, Frames

log = logging.getLogger(__name__)

#: Most texts of a request that are tokenised in the event loop; more would delay other requests.
FEW = 8
#: Seconds between two snapshots of the metrics.
SNAPSHOT_S = 0.5
#: Seconds between two attempts to reach the front.
RETRY_S = 0.5


class Encoder(Runner, Protocol):
    """A model with its tokenizer."""

    @property
    def columns(self) -> Sequence[Sequence[str]]:
        """Of each text column the accepted names."""
        ...

    def encode(self, texts: Sequence[tuple[str, ...]], *, truncate: bool) -> list[Row]:
        """Tokenise texts. Raises DataError if one is too long."""
        ...

    def choose(self, choice: Mapping[str, Any]) -> Any:
        """The exit criterion that a request asks for. Raises ConfigError if there is none."""
        ...


class Worker:
    """Answers the requests of one front.

    Args:
        model: The model.
        engine: Its queue.
        limits: Limits.
        metrics: What is sent to the front twice a second.
        hello: What the replica says of itself, with the front's token.
    """

    def __init__(
        self, model: Encoder, engine: Engine, limits: Limits, metrics: Metrics, hello: Mapping[str, Any]
    ) -> None:
        self.model, self.engine, self.limits, self.metrics, self.hello = model, engine, limits, metrics, hello
        self._open: dict[int, asyncio.Future[Any]] = {}
        self._lost = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._frames: Frames | None = None

    def drain(self) -> None:
        """Tell the front to send no more requests; from any thread."""
        if self._loop is not None and self._frames is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._frames.send, DRAIN, 0)

    async def run(self, host: str, port: int) -> None:
        """Connect to the front, and again whenever the connection breaks; until cancelled."""
        loop = self._loop = asyncio.get_running_loop()
        ticking = asyncio.ensure_future(self._tick())
        try:
            while True:
                self._lost.clear()
                try:
                    _, frames = await loop.create_connection(lambda: Frames(self._on_frame, self._on_lost), host, port)
                except OSError:
                    await asyncio.sleep(RETRY_S)
                    continue
                self._frames = frames
                frames.send(HELLO, 0, json.dumps(self.hello).encode())
                reporting = asyncio.ensure_future(self._report(frames))
                await self._lost.wait()
                reporting.cancel()
                await asyncio.sleep(RETRY_S)
        finally:
            ticking.cancel()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(PERIOD)
            self.engine.tick()

    async def _report(self, frames: Frames) -> None:
        while True:
            frames.send(SNAPSHOT, 0, json.dumps(self.metrics.snapshot()).encode())
            await asyncio.sleep(SNAPSHOT_S)

    def _on_lost(self, frames: Frames) -> None:
        for future in list(self._open.values()):  # nobody waits for them any more
            future.cancel()
        self._lost.set()

    def _on_frame(self, frames: Frames, kind: int, number: int, payload: bytes) -> None:
        if kind == CANCEL and (future := self._open.pop(number, None)) is not None:
            future.cancel()
        elif kind == REQUEST:
            try:
                request = read_request(payload, self.model.columns, self.limits)
                self.engine.admit(len(request.texts))
                if len(request.texts) > FEW:
                    future = asyncio.ensure_future(self._long(request))
                else:
                    future = self.engine.submit(self._rows(request), self._exits(request))
            except Exception as error:
                frames.send(ANSWER, number, failure(error))
            else:
                self._open[number] = future
                future.add_done_callback(functools.partial(self._done, frames, number))

    def _rows(self, request: Request) -> list[Row]:
        return self.model.encode(request.texts, truncate=request.truncate) if request.texts else []

    def _exits(self, request: Request) -> Any:
        return self.model.choose(request.choice) if request.choice else None

    async def _long(self, request: Request) -> list[dict[str, Any]]:
        """Tokenise many texts in a thread."""
        rows = await asyncio.get_running_loop().run_in_executor(None, self._rows, request)
        future = self.engine.submit(rows, self._exits(request))
        return await future

    def _done(self, frames: Frames, number: int, future: asyncio.Future[list[dict[str, Any]]]) -> None:
        self._open.pop(number, None)
        if future.cancelled():
            return
        error = future.exception()
        frames.send(ANSWER, number, success(future.result()) if error is None else failure(error))


def success(predictions: Sequence[Mapping[str, Any]]) -> bytes:
    """Make the payload of an answer with predictions, in the form of MLflow's server."""
    return STATUS.pack(200, 0) + json.dumps({"predictions": predictions}, ensure_ascii=False).encode()


def failure(error: BaseException) -> bytes:
    """Make the payload of an answer with an error; an unexpected one is logged, and the client learns its type only."""
    if isinstance(error, Refusal):
        return STATUS.pack(error.status, error.retry_after or 0) + error.body
    if isinstance(error, LeebertError):
        return STATUS.pack(422, 0) + error_body(422, str(error))
    log.error("a request failed", exc_info=error)
    return STATUS.pack(500, 0) + error_body(500, f"the server failed: {type(error).__name__}; its log has the details")
