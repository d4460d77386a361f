"""Ends a trial that hangs: a deadlock in a library, a data loader that waits for ever, a GPU that stopped answering.

Every batch that is asked for is a sign of life. Where none comes for too long, the process writes all its threads'
stacks into a file and ends itself; the driver sees a dead trial, and the configuration goes on elsewhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leebert.errors import StorageError
from leebert.record import Batch, Rows


class Watchdog:
    """Armed between `with` and its end. faulthandler waits in a thread of C, which a stuck interpreter can't keep from it."""

    def __init__(self, seconds: float | None, report: Path) -> None:
        self.seconds, self.report = seconds or 0.0, report
        self._file: Any = None
        self._armed = 0.0

    def __enter__(self) -> Watchdog:
        if self.seconds:
            try:
                self.report.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.report, "w")
            except OSError as error:
                raise StorageError(f"{self.report} can't be written: {error.strerror or error}") from None
            self.alive()
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            self._file = None
            with contextlib.suppress(OSError):  # of storage that fails, an error is on its way already
                self.report.unlink(missing_ok=True)

    def alive(self) -> None:
        """A sign of life. Taken once in a hundredth of the time at most: it starts a thread."""
        now = time.monotonic()
        if self._file is not None and now - self._armed > self.seconds / 100:
            self._armed = now
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=self._file)

    @contextlib.contextmanager
    def asleep(self) -> Iterator[None]:
        """For as long as nothing has to happen."""
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
        yield
        self._armed = 0.0
        self.alive()

    def watch(self, rows: Rows) -> Rows:
        """The same rows, each batch of which is a sign of life."""
        return _Watched(rows, self)


@dataclasses.dataclass(frozen=True)
class _Watched:
    rows: Rows
    watchdog: Watchdog

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Any:
        return self.rows.lengths

    def collate(self, indices: object) -> Batch:
        self.watchdog.alive()
        return self.rows.collate(indices)
