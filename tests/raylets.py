"""Ray nodes of one cluster as processes of this machine, each with its own environment."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from ahead import ENVIRONMENT

RAY = str(Path(sys.executable).parent / "ray")


class Raylets:
    """A cluster that `ray start` makes, on this machine only; other clusters here don't hear of it."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self._folder = tempfile.TemporaryDirectory(prefix="ray-")  # sockets lie in it: its path must be short
        self._started: list[subprocess.Popen[bytes]] = []

    def head(self, *options: str, **environment: str) -> None:
        port = self.address.split(":")[1]
        where = ["--head", "--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={self._folder.name}"]
        self._start([*where, "--include-dashboard=false", *options], environment)

    def worker(self, *options: str, within: Sequence[str] = (), **environment: str) -> None:
        """`within` is a command that runs the rest of its arguments."""
        where = [f"--address={self.address}", "--node-ip-address=127.0.0.1"]
        self._start([*where, *options], environment, within)

    def _start(self, options: list[str], environment: dict[str, str], within: Sequence[str] = ()) -> None:
        command = [
            *within,
            RAY,
            "start",
            "--block",
            "--disable-usage-stats",
            "--object-store-memory=100000000",
            *options,
        ]
        log = Path(self._folder.name) / f"start-{len(self._started)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**ENVIRONMENT, **environment},
                start_new_session=True,
            )
        self._started.append(process)
        deadline = time.monotonic() + 90
        while b"Ray runtime started" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"ray start failed:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End all that was started, and what that started."""
        everything = []
        for process in self._started:
            if process.poll() is None:
                own = psutil.Process(process.pid)
                everything += [own, *own.children(recursive=True)]
        for one in everything:
            try:
                one.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(everything, timeout=10)
        for process in self._started:
            process.wait(10)
        self._folder.cleanup()
