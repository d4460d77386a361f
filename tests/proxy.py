"""A way to an HTTP server on which chosen requests go wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator


@dataclasses.dataclass(frozen=True)
class Fault:
    """A request is answered so in the server's place; without a status, its connection is cut.

    One that is `forwarded` reaches the server all the same, `late` seconds later.
    """

    status: int | None = None
    content: bytes = b"{}"
    forwarded: bool = False
    late: float = 0.0


@contextlib.contextmanager
def proxy(url: str, fault: Callable[[str], Fault | None]) -> Iterator[str]:
    """The address of a proxy of `url`; `fault` is asked with each request's path, and None lets it through."""

    class Proxy(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # an answer goes out whole: in two parts, the second waits 40 ms for the first's acknowledgement
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self._body()
            wrong = fault(self.path)
            if wrong is not None:
                time.sleep(wrong.late)
            if wrong is None or wrong.forwarded:
                answer = self._forward(body)
            if wrong is not None:
                if wrong.status is None:
                    self.close_connection = True
                    return
                answer = wrong.status, wrong.content
            status, content = answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_PATCH = do_DELETE = do_POST

        def _body(self) -> bytes:
            """What is left unread would be taken for the next request. An empty file comes in chunks, of which it has none."""
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def _forward(self, body: bytes) -> tuple[int, bytes]:
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(url + self.path, body or None, headers, method=self.command)
            try:
                with urllib.request.urlopen(request) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as error:
                return error.code, error.read()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
