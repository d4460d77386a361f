"""Rebuilding MLflow from a sweep's ledger: a new server gets everything, another one the missing part.

The feed sees by a run's last step which epochs a server has. Losses before that step (a proxy that answered in the server's
place) are found by reading everything back.
"""

from __future__ import annotations

import dataclasses
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from leebert.errors import SweepError
from tune.store.curves import CellCurves
from tune.store.folder import SweepFolder, driver_lease, spec_of, sweep_argument
from tune.store.ledger import LedgerRecord, SweepState
from tune.tracking.audit import Audit, RunDifference
from tune.tracking.events import ConfigEnded, TrackingEvent
from tune.tracking.feed import events, replay
from tune.tracking.publish import Publisher
from tune.tracking.tracker import CLOSE_SECONDS, Tracker, mlflow_address, tracker_for

log = logging.getLogger(__name__)

#: The largest number of times that MLflow is compared with the ledger and mended.
PASSES = 5


class _Kept:
    """A listener that collects a sweep's events."""

    def __init__(self, sweep: str) -> None:
        self.sweep = sweep
        self.events: list[TrackingEvent] = []

    def put(self, event: TrackingEvent) -> None:
        self.events.append(event)


def rebuild(
    folder: SweepFolder,
    *,
    tracking_uri: str | None = None,
    experiment: str | None = None,
) -> dict[str, Any]:
    """Send what MLflow lacks of a sweep without a driver, read everything back, and correct what differs.

    Args:
        folder: The sweep's folder.
        tracking_uri: MLflow's address; None: the sweep's own.
        experiment: Name of the experiment; None: the sweep's own.

    Returns:
        A JSON-ready summary. `unsent` counts events for which the server was unreachable, `mended` the runs that differed
        and no longer do, `differences` lists the remaining ones: MLflow holds the whole sweep if `unsent` is 0 and
        `differences` is empty.

    Raises:
        LeaseError: While another process drives the sweep.
        SweepError: If a part of its ledger was lost.
        TrackingError: If MLflow cannot be used.
    """
    folder.refuse_links()
    spec = spec_of(folder)
    # Only the holder of the lease writes to MLflow: two processes at once would create runs twice.
    with driver_lease(folder) as lease:
        _refuse_partial(folder)
        tracker = tracker_for(spec, folder.name, uri=tracking_uri, experiment=experiment)
        tracker.fence(lease.check)
        started = time.monotonic()
        kept = _Kept(folder.name)
        curve_of = CellCurves(folder.path, log.warning)
        state = replay(folder.ledger, kept, curve_of)
        Publisher(kept, spec, folder).end(state)
        for event in events(_end(state), state, curve_of):
            kept.put(event)
        sent = with_newest_results(kept.events)
        for event in sent:
            tracker.put(event)
        unsent = tracker.close(CLOSE_SECONDS)
        mended, remaining = (0, []) if unsent else write_missing(tracker, sent, lease.check)
    return {
        "sweep": folder.name,
        "mlflow": mlflow_address(tracker),
        "views": tracker.views,
        "cells": len(state.epochs),
        "reports": state.fold_epochs,
        "seconds": time.monotonic() - started,
        "unsent": unsent,
        "rejected": tracker.rejected,
        "mended": mended,
        "differences": [str(difference) for difference in remaining],
    }


def _refuse_partial(folder: SweepFolder) -> None:
    """Raise SweepError if decisions were lost and not restored: MLflow may hold more than the ledger, and would lose it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the same
        state = folder.ledger.read(epochs=False)
    if state.missing and any(configuration.state == "running" for configuration in state.history()):
        raise SweepError(
            f"{folder.ledger.folder}: {'; '.join(state.missing)}. MLflow may hold more than the ledger, and a rebuild would "
            f"delete it: first resume by: leebert-tune resume {sweep_argument(folder)}"
        )


def with_newest_results(events: Sequence[TrackingEvent]) -> list[TrackingEvent]:
    """Give every end of a configuration the results of its last end.

    A configuration ends again after more seeds or a repair. MLflow cannot delete the points of the first end, and points of
    two ends at one step would contradict each other.
    """
    ends = (event for event in events if isinstance(event, ConfigEnded) and event.status in ("complete", "pruned"))
    newest = {event.config_id: event for event in ends}

    def newer(event: TrackingEvent) -> TrackingEvent:
        if not isinstance(event, ConfigEnded) or (last := newest.get(event.config_id)) is None:
            return event
        return dataclasses.replace(event, metrics=last.metrics, depth=last.depth, curve=last.curve)

    return [newer(event) for event in events]


def write_missing(
    tracker: Tracker, events: Sequence[TrackingEvent], may_send: Callable[[], None]
) -> tuple[int, list[RunDifference]]:
    """Correct MLflow until nothing differs from the ledger, or an attempt makes no progress.

    Args:
        tracker: The sweep's tracker.
        events: All events of the sweep, in order.
        may_send: Raises if this process may no longer write.

    Returns:
        Number of corrected runs, and the differences after the last attempt.
    """
    assert tracker.experiment_id is not None
    audit = Audit(
        tracker.uri,
        tracker.experiment_id,
        tracker.sweep,
        tracker.task,
        events,
        may_send=may_send,
        patience=CLOSE_SECONDS,
        with_views=tracker.takes_views,
        pictures_refused=tracker.pictures_refused,
    )
    runs: set[str] = set()
    before: list[RunDifference] = []
    for _ in range(PASSES):
        remaining = audit.differences(mend=True)
        if not remaining:
            return len(runs), []
        if not runs:
            log.info(f"correcting {len({one.run for one in remaining})} runs in MLflow that differ from the ledger")
        runs |= {one.run for one in remaining}
        if any(one.absent for one in remaining):
            again = tracker.again(audit.pictures_refused)
            again.fence(may_send)
            for event in events:
                again.put(event)
            again.close(CLOSE_SECONDS)
            audit.pictures_refused = again.pictures_refused
        if remaining == before:
            break  # the server accepts requests without effect
        before = remaining
    remaining = audit.differences(mend=False)
    return len(runs - {one.run for one in remaining}), remaining


def _end(state: SweepState) -> LedgerRecord:
    """Return the record of the sweep's end; a driver that died stopped with its last record.

    It is sent again after everything else, since a trial may have written later than its driver.
    """
    last = state.session[1] if state.session else 0.0
    return state.end or {"kind": "end", "status": "stopped", "note": "its driver died", "time": last}
