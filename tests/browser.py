"""Chromium without a window, driven over its DevTools protocol through a pair of pipes: no package, no port."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--remote-debugging-pipe",
    # Without a pointer charts show their tool bars all the time.
    "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4",
)  # fmt: skip

# MLflow's first visit opens an assistant over the charts.
NO_ASSISTANT = """
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
"""


def chromium() -> str:
    """Its path. Without it a test is skipped, and fails where LEEBERT_BROWSER=required says that it should be there."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path:
        return path
    if os.environ.get("LEEBERT_BROWSER") == "required":
        pytest.fail("LEEBERT_BROWSER=required, but there is no chromium on the path")
    pytest.skip("no chromium on the path: this test looks at MLflow's pages (Debian: apt-get install chromium)")


class Browser:
    """One page of a Chromium."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests, self._answers, self._read, self._number = requests, answers, b"", 0
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command; its answer. RuntimeError for one that Chromium refuses or takes more than 60 s for."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while True:
            answer = self._next(deadline, method)
            if answer.get("id") == self._number:  # the rest are events
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    def size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def open(self, url: str) -> None:
        # By way of an empty page: a new fragment alone would not load anything again.
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)

    def before_each_page(self, script: str) -> None:
        self.call("Page.addScriptToEvaluateOnNewDocument", source=script)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, JSON-ready."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _next(self, deadline: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            some = os.read(self._answers, 1 << 16) if ready else b""
            if not some:
                raise RuntimeError(f"{method}: Chromium {'has ended' if ready else 'does not answer'}")
            self._read += some
        message, self._read = self._read.split(b"\0", 1)
        return dict(json.loads(message))


@contextlib.contextmanager
def browser(path: str) -> Iterator[Browser]:
    """A Chromium with a profile of its own, ended with all its processes at the end."""
    request_end, requests = os.pipe()
    answers, answer_end = os.pipe()

    # It reads commands from descriptor 3 and answers on 4, which are set up after the fork by a shell.
    command = f'exec "$0" "$@" 3<&{request_end} 4>&{answer_end}'
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            ["bash", "-c", command, path, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(request_end, answer_end),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(request_end)
        os.close(answer_end)
        try:
            yield Browser(requests, answers)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
            os.close(requests)
            os.close(answers)
