"""The HTTP front of a server: an ASGI application that hands requests to replicas and never runs a model itself."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from tune.serve.metrics import Metrics, page
from tune.serve.requests import Limits, Refusal, check_content_type, error_body
from tune.serve.wire import ANSWER, CANCEL, DRAIN, HELLO, LONGEST, LONGEST_GREETING, REQUEST, SNAPSHOT, STATUS, Frames

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: Bytes of all bodies that the front holds at a time.
MOST_BYTES = 256 << 20
#: Seconds in which a client must send its body.
BODY_S = 30.0
#: Seconds in which a replica must present its token.
GREETING_S = 10.0
#: Ended replicas whose counters remain on the page of metrics.
REMEMBERED = 20

_FULL = "too many requests are being received: send the request again later"
_GONE = "the replica that held this request ended before it answered: send the request again"


class Replica:
    """A connected replica and its open requests."""

    def __init__(self, frames: Frames, name: str, hello: Mapping[str, Any]) -> None:
        self.frames, self.name, self.hello = frames, name, hello
        self.open: dict[int, asyncio.Future[tuple[int, int, bytes]]] = {}
        self.draining = False


class Front:
    """The ASGI application.

    Args:
        limits: Limits.
        token: What replicas must present.
        about: What `GET /` shows of the server.
    """

    def __init__(self, limits: Limits, token: str, about: Mapping[str, Any]) -> None:
        self.limits, self.about, self.metrics = limits, about, Metrics()
        self.replicas: dict[Frames, Replica] = {}
        self.draining = False
        self.connections: Callable[[], int] = lambda: 0
        self._token = token
        self._snapshots: dict[str, dict[str, Any]] = {}
        self._number = self._bytes = 0

    # Replicas

    def accept(self) -> Frames:
        """Make the protocol of a connection from a replica."""
        frames = Frames(self._on_frame, self._on_lost)
        frames.longest = LONGEST_GREETING
        asyncio.get_running_loop().call_later(GREETING_S, self._close_stranger, frames)
        return frames

    def _close_stranger(self, frames: Frames) -> None:
        if frames not in self.replicas:
            frames.close()

    @property
    def ready(self) -> bool:
        """Whether a replica takes requests."""
        return not self.draining and any(not replica.draining for replica in self.replicas.values())

    def _on_frame(self, frames: Frames, kind: int, number: int, payload: bytes) -> None:
        replica = self.replicas.get(frames)
        if replica is None:
            self._greet(frames, kind, payload)
        elif kind == ANSWER:
            future = replica.open.pop(number, None)
            if future is not None and not future.done():
                future.set_result((*STATUS.unpack_from(payload), payload[STATUS.size :]))
        elif kind == SNAPSHOT:
            self._snapshots[replica.name] = json.loads(payload)
        elif kind == DRAIN:
            replica.draining = True

    def _greet(self, frames: Frames, kind: int, payload: bytes) -> None:
        try:
            hello = json.loads(payload) if kind == HELLO else None
        except ValueError:
            hello = None
        token = str(hello.get("token")).encode(errors="replace") if isinstance(hello, dict) else b""
        if not (isinstance(hello, dict) and hmac.compare_digest(token, self._token.encode())):
            frames.close()
            return
        frames.longest = LONGEST
        self.replicas[frames] = Replica(frames, str(hello.get("replica")), hello)
        log.info("replica %s is ready (%d connected)", hello.get("replica"), len(self.replicas))

    def _on_lost(self, frames: Frames) -> None:
        if (replica := self.replicas.pop(frames, None)) is None:
            return
        if not self.draining:
            log.warning("replica %s ended with %d open requests", replica.name, len(replica.open))
        for future in replica.open.values():
            if not future.done():
                future.set_exception(Refusal(503, _GONE, retry_after=1))
        present = {other.name for other in self.replicas.values()}
        for name in [name for name in self._snapshots if name not in present][:-REMEMBERED]:
            del self._snapshots[name]

    # HTTP

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] != "http":
            return
        path, method = scope["path"], scope["method"]
        route = _ROUTES.get(path)
        if route is None:
            paths = ", ".join(_ROUTES)
            await _respond(send, 404, error_body(404, f"no such path; the server has {paths}"))
        elif method not in route[0]:
            allow = ", ".join(route[0])
            body = error_body(405, f"{path} takes {allow}, not {method}")
            await _respond(send, 405, body, [(b"allow", allow.encode())])
        else:
            await route[1](self, scope, receive, send)

    async def _invoke(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, headers = time.perf_counter(), list[tuple[bytes, bytes]]()
        try:
            body = await self._body(scope, receive)
            started = time.perf_counter()
            status, retry, answer = await self._predict(body, receive)
        except Refusal as refusal:
            status, retry, answer = refusal.status, refusal.retry_after or 0, refusal.body
            if isinstance(refusal, _UnreadBody):
                headers.append((b"connection", b"close"))
        except _ClientGone:
            self.metrics.add("requests_total", status=499)
            return
        self.metrics.add("requests_total", status=status)
        self.metrics.observe("request_seconds", time.perf_counter() - started)
        if retry:
            headers.append((b"retry-after", str(retry).encode()))
        await _respond(send, status, answer, headers)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        headers = dict(scope["headers"])
        if self.connections() > self.limits.connections:
            raise Refusal(503, f"more than {self.limits.connections} connections: try again later", retry_after=1)
        limit = self.limits.body_bytes
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > limit:
            raise _UnreadBody(413, f"a body of {int(length)} bytes: the server takes {limit}; send several requests")
        check_content_type(headers.get(b"content-type", b"").decode("latin-1"))
        if self._bytes + (int(length) if length.isdigit() else 0) > MOST_BYTES:
            raise _UnreadBody(429, _FULL, retry_after=1)
        message = await receive()  # nearly always the whole body
        if message["type"] == "http.request" and not message.get("more_body"):
            body: bytes = message.get("body", b"")
            if len(body) > limit:
                raise Refusal(413, f"a body of more than {limit} bytes: send several requests")
            return body
        return await self._long_body(message, receive)

    async def _long_body(self, message: MutableMapping[str, Any], receive: Receive) -> bytes:
        """Read a body that comes in several parts, at most so large and so slow."""
        parts: list[bytes] = []
        size, limit = 0, self.limits.body_bytes
        try:
            async with asyncio.timeout(BODY_S):
                while True:
                    if message["type"] == "http.disconnect":
                        raise _ClientGone
                    parts.append(part := message.get("body", b""))
                    size += len(part)
                    self._bytes += len(part)
                    if size > limit:
                        raise _UnreadBody(413, f"a body of more than {limit} bytes: send several requests")
                    if self._bytes > MOST_BYTES:
                        raise _UnreadBody(429, _FULL, retry_after=1)
                    if not message.get("more_body"):
                        return b"".join(parts)
                    message = await receive()
        except TimeoutError:
            raise _UnreadBody(408, f"the body did not arrive within {BODY_S:g} s") from None
        finally:
            self._bytes -= size

    async def _predict(self, body: bytes, receive: Receive) -> tuple[int, int, bytes]:
        """Hand a request to the replica with the fewest open ones; tell it if the client goes."""
        replicas = [replica for replica in self.replicas.values() if not replica.draining]
        if self.draining or not replicas:
            raise Refusal(503, "no replica is ready: send the request again later", retry_after=2)
        replica = min(replicas, key=lambda one: len(one.open))
        self._number = number = (self._number + 1) % (1 << 32)
        future: asyncio.Future[tuple[int, int, bytes]] = asyncio.get_running_loop().create_future()
        replica.open[number] = future
        self._bytes += len(body)
        replica.frames.send(REQUEST, number, body)
        watch = asyncio.ensure_future(receive())
        try:
            await asyncio.wait((future, watch), return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                replica.open.pop(number, None)
                replica.frames.send(CANCEL, number)
                raise _ClientGone
            return future.result()
        finally:
            self._bytes -= len(body)
            watch.cancel()

    async def _health(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.ready:
            await _respond(send, 200, b'{"status": "ready"}')
        else:
            status = b"shutting down" if self.draining else b"starting"
            await _respond(send, 503, b'{"status": "' + status + b'"}', [(b"retry-after", b"1")])

    async def _metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.metrics.set("replicas", len(self.replicas))
        self.metrics.set("connections", self.connections())
        present = {replica.name for replica in self.replicas.values()}
        gone = frozenset(name for name in self._snapshots if name not in present)
        text = page({"": self.metrics.snapshot(), **self._snapshots}, gone)
        await _respond(send, 200, text.encode(), kind=b"text/plain; version=0.0.4; charset=utf-8")

    async def _about(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _respond(send, 200, json.dumps(self.about, ensure_ascii=False, indent=1).encode())


_ROUTES: dict[str, tuple[tuple[str, ...], Callable[[Front, Scope, Receive, Send], Awaitable[None]]]] = {
    "/": (("GET",), Front._about),
    "/invocations": (("POST",), Front._invoke),
    "/healthz": (("GET",), Front._health),
    "/ping": (("GET",), Front._health),
    "/metrics": (("GET",), Front._metrics),
}


class _UnreadBody(Refusal):
    """A refusal before the whole body was read: the connection is closed, so that the rest is not sent."""


class _ClientGone(Exception):
    """The client has closed its connection."""


async def _respond(
    send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None,
    kind: bytes = b"application/json",
) -> None:  # fmt: skip
    start = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *(headers or [])]
    with contextlib.suppress(ConnectionError):
        await send({"type": "http.response.start", "status": status, "headers": start})
        await send({"type": "http.response.body", "body": body})
