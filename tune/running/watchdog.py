"""End a trial that hangs: a deadlock in a library, a data loader that waits forever, a GPU that stopped answering.

Each batch that training requests resets a timer. When the timer expires, the process writes the stacks of all its
threads to a file and exits; the driver then retries the configuration.
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
from leebert.record import Batch, SampleSet


class Watchdog:
    """End the process when no batch was requested for too long; active within a `with` block.

    faulthandler waits in a C thread, which runs even while the interpreter is stuck.

    Args:
        seconds: The longest time between two batches; None or 0 turns the watchdog off.
        report: The file for the stacks.
    """

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
                raise StorageError(
                    f"{self.report} can't be written: {error.strerror or error}; check permissions and free space"
                ) from None
            self.alive()
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            self._file = None
            with contextlib.suppress(OSError):  # failing storage has raised an error already
                self.report.unlink(missing_ok=True)

    def alive(self) -> None:
        """Reset the timer, at most once per hundredth of its time, since each reset starts a thread."""
        now = time.monotonic()
        if self._file is not None and now - self._armed > self.seconds / 100:
            self._armed = now
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=self._file)

    @contextlib.contextmanager
    def asleep(self) -> Iterator[None]:
        """Pause the timer while no batch is expected."""
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
        yield
        self._armed = 0.0
        self.alive()

    def watch(self, rows: SampleSet) -> SampleSet:
        """Wrap the samples so that each requested batch resets the timer."""
        return _Watched(rows, self)


@dataclasses.dataclass(frozen=True)
class _Watched:
    rows: SampleSet
    watchdog: Watchdog

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Any:
        return self.rows.lengths

    def collate(self, indices: object) -> Batch:
        self.watchdog.alive()
        return self.rows.collate(indices)
