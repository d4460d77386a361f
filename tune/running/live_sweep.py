"""The live display of a sweep's session, kept up to date by the driver."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from leebert import live
from tune.analysis.progress import Active, SweepProgress, progress_of
from tune.analysis.progress_text import progress_lines
from tune.running.driver import Driver
from tune.space import SweepSpec

#: Shown until the first trial reports: a new process takes seconds to import PyTorch.
STARTING = "waiting for the first epoch: the trials' processes load PyTorch, data and backbone"


class LiveSweep:
    """Shows a driver's sweep in the open display.

    The driver's thread calls :meth:`update`; the display's own thread draws the last summary.

    Args:
        name: The sweep's name.
        spec: Its space.
        manifest: Its manifest.
        driver: Its driver.
        now: Seconds since 1970.
    """

    def __init__(
        self,
        name: str,
        spec: SweepSpec,
        manifest: Mapping[str, Any],
        driver: Driver,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._name, self._spec, self._manifest, self._driver, self._now = name, spec, manifest, driver, now
        self._latest: tuple[float, SweepProgress] | None = None
        self._epochs = driver.state.fold_epochs
        live.phase(STARTING)
        live.body(self.draw)

    def update(self) -> None:
        """Summarise the present state; does nothing where no display is drawn."""
        if not live.is_drawn():
            return
        driver, now = self._driver, self._now()
        started = set(driver.started_trials())
        active = Active(
            running={config for trial, config in driver.running.items() if trial in started},
            queued={config for trial, config in driver.running.items() if trial not in started},
            started=driver.started,
        )
        stopping = driver.stopping.reason() or ""
        progress = progress_of(self._name, self._spec, self._manifest, driver.state, active, now, stopping)
        self._latest = now, progress
        live.phase("" if driver.state.fold_epochs > self._epochs else STARTING)

    def draw(self, width: int, height: int) -> list[str]:
        """Return the display's lines at this moment."""
        if self._latest is None:
            return []
        at, progress = self._latest
        return progress_lines(progress.later(self._now() - at), width, height)
