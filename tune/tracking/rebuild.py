"""MLflow from a sweep's ledger: a new server gets everything, one that has a part gets what it lacks.

The feed knows by a run's last step which epochs a server has. What it was told wrongly in between (a proxy that answered
in the server's place) is found by reading everything back.
"""

from __future__ import annotations

import dataclasses
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
from tune.tracking.publish import Showing
from tune.tracking.tracker import CLOSE_SECONDS, Tracker, mlflow_address, tracker_for

#: So often MLflow is compared with the ledger and mended, at most.
PASSES = 5


class _Kept:
    """A listener that keeps a sweep's events."""

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
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Send what MLflow lacks of a sweep that nobody drives, read everything back, and mend what differs; JSON-ready.

    `unsent` counts events for which the server was away, `mended` the runs that differed and no longer do, and
    `differences` says what is left, a line each: MLflow holds the whole sweep where both are nothing. Raises LeaseError
    while another process drives the sweep, SweepError where a part of its ledger was lost, TrackingError where MLflow
    can't be used at all.
    """
    folder.refuse_links()
    spec = spec_of(folder)
    # Feeding MLflow is the driver's: two at once would create runs twice.
    with driver_lease(folder) as lease:
        _refuse_partial(folder)
        tracker = tracker_for(spec, folder.name, say, uri=tracking_uri, experiment=experiment)
        tracker.fence(lease.check)
        started = time.monotonic()
        kept = _Kept(folder.name)
        curve_of = CellCurves(folder.path, say)
        state = replay(folder.ledger, kept, curve_of)
        Showing(kept, spec, folder.manifest["test_train_ratio"], say).end(state)
        for event in events(_end(state), state, curve_of):
            kept.put(event)
        told = with_newest_results(kept.events)
        for event in told:
            tracker.put(event)
        unsent = tracker.close(CLOSE_SECONDS)
        mended, left = (0, []) if unsent else complete(tracker, told, lease.check, say)
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
        "differences": [str(difference) for difference in left],
    }


def _refuse_partial(folder: SweepFolder) -> None:
    """SweepError where decisions were lost and not made again: MLflow may hold what the ledger does not, and would lose it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the same
        state = folder.ledger.read(epochs=False)
    if state.missing and any(configuration.state == "running" for configuration in state.history()):
        raise SweepError(
            f"{folder.ledger.folder}: {'; '.join(state.missing)}. MLflow may hold more than that, and would be changed to "
            f"it: first go on by: leebert-tune resume {sweep_argument(folder)}"
        )


def with_newest_results(told: Sequence[TrackingEvent]) -> list[TrackingEvent]:
    """The events, in which each end of a configuration has the results of its last one.

    A configuration ends again after more seeds or a repair. MLflow can't take back what it was told at the first end, and
    points of two ends at one step would contradict each other.
    """
    ends = (event for event in told if isinstance(event, ConfigEnded) and event.status in ("complete", "pruned"))
    newest = {event.config_id: event for event in ends}

    def newer(event: TrackingEvent) -> TrackingEvent:
        if not isinstance(event, ConfigEnded) or (last := newest.get(event.config_id)) is None:
            return event
        return dataclasses.replace(event, metrics=last.metrics, depth=last.depth, curve=last.curve)

    return [newer(event) for event in told]


def complete(
    tracker: Tracker, told: Sequence[TrackingEvent], may_send: Callable[[], None], say: Callable[[str], None]
) -> tuple[int, list[RunDifference]]:
    """Mend until nothing differs; how many runs were mended, and what differs after the last attempt."""
    assert tracker.experiment_id is not None
    audit = Audit(
        tracker.uri,
        tracker.experiment_id,
        tracker.sweep,
        tracker.task,
        told,
        may_send=may_send,
        patience=CLOSE_SECONDS,
        with_views=tracker.takes_views,
    )
    runs: set[str] = set()
    before: list[RunDifference] = []
    for _ in range(PASSES):
        left = audit.differences(mend=True)
        if not left:
            return len(runs), []
        if not runs:
            say(f"MLflow differs from the sweep's record in {len({one.run for one in left})} runs, which are mended")
        runs |= {one.run for one in left}
        if any(one.absent for one in left):
            again = tracker.again()
            again.fence(may_send)
            for event in told:
                again.put(event)
            again.close(CLOSE_SECONDS)
        if left == before:
            break  # whoever answers takes nothing
        before = left
    left = audit.differences(mend=False)
    return len(runs - {one.run for one in left}), left


def _end(state: SweepState) -> LedgerRecord:
    """How the sweep ended; a driver that died stopped with its last record.

    It is told again after everything else, for what a trial has written beyond its driver's last word.
    """
    last = state.session[1] if state.session else 0.0
    return state.end or {"kind": "end", "status": "stopped", "note": "its driver died", "time": last}
