"""Sending the ledger's records to MLflow: training never waits for the server, and nothing is lost while it is down.

The driver puts events; one thread sends them in order and retries until the server accepts them. MLflow holds no data of
its own: given the same events again, a new `Tracker` finds the runs by their tags and writes only missing values. So a
replay completes a resumed sweep, or one whose server was down at its end.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Callable

from leebert.errors import LeaseError, TrackingError
from tune.space.spec import SweepSpec, experiment_of
from tune.tracking.events import (
    Epoch,
    SavedViews,
    TrackingEvent,
)
from tune.tracking.images import refusal_warning
from tune.tracking.runs import RunWriter
from tune.tracking.saved_views import ViewsRefused, links
from tune.tracking.server import advice, experiment_url, is_permanent, readable_errors, redact, resolve_uri

log = logging.getLogger(__name__)

CHECK_SECONDS = 5.0

#: Seconds that the end of a sweep waits for a server that accepts nothing; it keeps waiting while events are accepted.
CLOSE_SECONDS = 30.0
PROGRESS_SECONDS = 10.0

#: The number of waiting reports that are written together.
BATCH = 24


class Tracker:
    """The connection to MLflow: `check` once before the sweep, `put` each event, `close` at the end."""

    def __init__(
        self,
        uri: str,
        experiment: str,
        sweep: str,
        task: str,
        *,
        longest_pause: float = 15.0,
    ) -> None:
        self.uri, self.experiment, self.sweep, self.task = uri, experiment, sweep, task
        self.rejected = 0
        self._views: SavedViews | None = None  # that MLflow has
        self._views_refused = False
        self._warned_of_pictures = False
        self._longest_pause = longest_pause
        self._first_pause = min(0.25, longest_pause)
        self._writer = RunWriter(uri, experiment, sweep, task)
        self._events: collections.deque[TrackingEvent] = collections.deque()
        self._changed = threading.Condition()
        self._closing = self._abandoned = False
        self._may_send: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def again(self, pictures_refused: str = "") -> Tracker:
        """Make another tracker for the same sweep, which searches MLflow's runs again.

        Args:
            pictures_refused: Why MLflow accepts no files, if that has been reported since; refusals to this one count too.
        """
        tracker = Tracker(self.uri, self.experiment, self.sweep, self.task, longest_pause=self._longest_pause)
        tracker._views_refused = self._views_refused
        tracker._writer.pictures_refused = pictures_refused or self.pictures_refused
        tracker._warned_of_pictures = bool(tracker.pictures_refused)
        return tracker

    @property
    def experiment_id(self) -> str | None:
        """MLflow's id of the experiment; None before the first connection."""
        return self._writer.experiment_id

    @property
    def waiting(self) -> int:
        """The number of events not sent yet."""
        return len(self._events)

    @property
    def url(self) -> str | None:
        """The page that compares this sweep's configurations; None before the first connection and for a database."""
        return self.experiment_id and experiment_url(self.uri, self.experiment_id, self.sweep)

    @property
    def takes_views(self) -> bool:
        """Whether MLflow accepts saved views; True until it refuses them."""
        return not self._views_refused

    @property
    def pictures_refused(self) -> str:
        """Why MLflow accepts no files of runs; empty until it refuses them."""
        return self._writer.pictures_refused

    @property
    def views(self) -> dict[str, str]:
        """The addresses of the saved views that MLflow accepted last, by their names."""
        if self._views is None or self.experiment_id is None:
            return {}
        return links(self.uri, self.experiment_id, self.sweep, self._views.views)

    def check(self, seconds: float = CHECK_SECONDS) -> None:
        """Send one quick request before training; creates a missing experiment or SQLite database. Raises TrackingError."""
        with readable_errors(self.uri):
            self._writer.connect(seconds)

    def fence(self, may_send: Callable[[], None]) -> None:
        """Send only while `may_send` doesn't raise LeaseError: after a takeover the new driver sends the events."""
        self._may_send = may_send

    def put(self, event: TrackingEvent) -> None:
        """Queue an event. Returns at once and never raises, whatever the server does."""
        if not event.time_ms:
            event = dataclasses.replace(event, time_ms=time.time_ns() // 1_000_000)
        with self._changed:
            self._events.append(event)
            if self._thread.ident is None:
                self._thread.start()
            self._changed.notify()

    def close(self, patience: float = CLOSE_SECONDS) -> int:
        """Send waiting events, until the server accepts none for `patience` seconds; return the number of unsent events."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        remaining, moved, reported = self.waiting, time.monotonic(), time.monotonic()
        while self._thread.is_alive() and (now := time.monotonic()) < moved + patience:
            self._thread.join(min(0.5, moved + patience - now))
            if self.waiting < remaining:
                remaining, moved = self.waiting, now
                if remaining and now > reported + PROGRESS_SECONDS:
                    reported = now
                    log.info(f"MLflow at {redact(self.uri)}: sending {remaining} pending events")
        self._abandoned = True
        if self.pictures_refused and not self._warned_of_pictures:
            log.warning(refusal_warning(self.uri, self.pictures_refused))
            self._warned_of_pictures = True
        if self.waiting:
            log.warning(
                f"MLflow at {redact(self.uri)}: {self.waiting} events were not sent. They are in the sweep's ledger; "
                f"`leebert-tune rebuild-mlflow` sends them, and so does resuming the sweep."
            )
        return self.waiting

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._events or self._closing)
                if not self._events:
                    return
                event, more = self._next()
            if not self._send(event, *more):
                return
            for _ in (event, *more):
                self._events.popleft()

    def _next(self) -> tuple[TrackingEvent, list[Epoch]]:
        """Return the event that has waited longest; for a report, also the reports that directly follow it."""
        first, *following = itertools.islice(self._events, BATCH)
        more: list[Epoch] = []
        for event in following:
            if not (isinstance(first, Epoch) and isinstance(event, Epoch)):
                break
            more.append(event)
        return first, more

    def _send(self, event: TrackingEvent, *more: Epoch) -> bool:
        """Send events until they are written or rejected; return False once the tracker is abandoned."""
        pause, away = self._first_pause, False
        while not self._abandoned:
            try:
                self._may_send()
                self._writer.apply(event, *more)
            except LeaseError:
                self._abandoned = True
            except ViewsRefused as error:
                if not self._views_refused:
                    log.warning(str(error))
                self._views_refused = True
                return True
            except Exception as error:
                if is_permanent(error):
                    if more:
                        return all(self._send(one) for one in (event, *more))
                    self._reject(event, error)
                    return True
                if not away:
                    log.warning(advice(self.uri, error) + " Training continues; its reports are sent later.")
                    away = True
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, timeout=pause)
                if self._closing:
                    time.sleep(self._first_pause)
                pause = min(2 * pause, self._longest_pause)
            else:
                if isinstance(event, SavedViews):
                    self._views = event
                if away:
                    log.info(f"MLflow at {redact(self.uri)} is back; sending {self.waiting} pending events.")
                return True
        return False

    def _reject(self, event: TrackingEvent, error: Exception) -> None:
        """Drop an event that MLflow will never accept (such as one of a deleted run), so that others proceed."""
        self.rejected += 1
        if self.rejected == 1:
            reason = redact(f"{type(error).__name__}: {' '.join(str(error).split())}")
            log.warning(
                f"MLflow at {redact(self.uri)} rejects {type(event).__name__}: {reason[:300]}. Rejected events are dropped."
            )


def tracker_for(spec: SweepSpec, name: str, *, uri: str | None = None, experiment: str | None = None) -> Tracker:
    """Connect a sweep to MLflow.

    Args:
        spec: The sweep's space.
        name: The sweep's name.
        uri: MLflow's address, in place of the space's.
        experiment: The experiment, in place of the space's.

    Raises:
        TrackingError: If MLflow cannot be used, or the space's address holds credentials.
    """
    if uri is None and spec.tracking.uri and redact(spec.tracking.uri) != spec.tracking.uri:
        # The space is saved in the sweep's folder, which must not hold secrets.
        raise TrackingError(
            f"tracking.uri {redact(spec.tracking.uri)} holds credentials; give them by MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or the whole address by MLFLOW_TRACKING_URI"
        )
    uri = resolve_uri(uri or spec.tracking.uri)
    tracker = Tracker(uri, experiment or experiment_of(spec), name, spec.task_name)
    tracker.check()
    return tracker


def mlflow_address(tracker: Tracker) -> str:
    """Return the sweep's page in MLflow, or the command that shows a database."""
    if tracker.url:
        return tracker.url
    return f"mlflow ui --backend-store-uri {redact(tracker.uri)}"
