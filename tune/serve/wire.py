"""The connection between the server's front and its replicas: frames over one TCP connection per replica.

A replica connects to the front when it is ready. HTTP is spoken once, by the front; a broken connection tells at once
which requests a replica takes with it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import cast

#: Length of the payload, kind, number of the request.
HEADER = struct.Struct("!IBI")
#: Status and seconds until a retry (0: none), before the body of an answer.
STATUS = struct.Struct("!HH")
#: Longest payload that is read: the answer to a request of very many rows.
LONGEST = 256 << 20
#: Longest payload from a peer that has not greeted with the token.
LONGEST_GREETING = 4096

#: Kinds of frames: a replica's greeting, a request, its answer, its client has gone, metrics, no more requests.
HELLO, REQUEST, ANSWER, CANCEL, SNAPSHOT, DRAIN = range(1, 7)


class Frames(asyncio.Protocol):
    """One end of a connection.

    Args:
        on_frame: Called with this object, kind, number and payload of each frame.
        on_lost: Called with this object when the connection has ended.
    """

    def __init__(self, on_frame: Callable[[Frames, int, int, bytes], None], on_lost: Callable[[Frames], None]) -> None:
        self._on_frame, self._on_lost = on_frame, on_lost
        self._buffer = bytearray()
        self.longest = LONGEST  #: longest payload that is read
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; small frames are sent at once."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        if (sock := transport.get_extra_info("socket")) is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, kind: int, number: int, payload: bytes = b"") -> None:
        """Send a frame; without effect on a broken connection.

        Args:
            kind: Kind of the frame.
            number: Number of the request; 0: none.
            payload: Its contents.
        """
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(HEADER.pack(len(payload), kind, number) + payload)

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Split what was received into frames."""
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            length, kind, number = HEADER.unpack_from(self._buffer, start)
            if length > self.longest:
                self.close()
                return
            end = start + HEADER.size + length
            if len(self._buffer) < end:
                break
            self._on_frame(self, kind, number, bytes(self._buffer[start + HEADER.size : end]))
            start = end
        del self._buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end of the connection."""
        self._on_lost(self)
