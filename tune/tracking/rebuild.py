"""MLflow from a sweep's ledger: a new server gets everything, one that has a part gets what it lacks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tune.analysis.overview import spec_of
from tune.running.driver import replay
from tune.running.sweep import held, mlflow_address, tracker_for
from tune.store.curves import CellCurves
from tune.store.folder import SweepFolder
from tune.store.ledger import Record, State
from tune.tracking.feed import events
from tune.tracking.showing import Showing
from tune.tracking.tracker import CLOSE_SECONDS


def rebuild(
    folder: SweepFolder,
    *,
    tracking_uri: str | None = None,
    experiment: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Send what MLflow lacks of a sweep that nobody drives, and wait until it has arrived; JSON-ready.

    `unsent` counts events for which the server was away, `rejected` those that it refused. Raises LeaseError while
    another process drives the sweep, TrackingError where MLflow can't be used at all.
    """
    folder.refuse_links()
    spec = spec_of(folder)
    # Feeding MLflow is the driver's: two at once would create runs twice.
    with held(folder) as lease:
        tracker = tracker_for(spec, folder.name, say, uri=tracking_uri, experiment=experiment)
        tracker.fence(lease.check)
        started = time.monotonic()
        curve_of = CellCurves(folder.path, say)
        state = replay(folder.ledger, tracker, curve_of)
        Showing(tracker, spec, folder.manifest["test_train_ratio"], say).end(state)
        for event in events(_end(state), state, curve_of):
            tracker.put(event)
        unsent = tracker.close(CLOSE_SECONDS)
    return {
        "sweep": folder.name,
        "mlflow": mlflow_address(tracker),
        "views": tracker.views,
        "cells": len(state.epochs),
        "reports": state.fold_epochs,
        "seconds": time.monotonic() - started,
        "unsent": unsent,
        "rejected": tracker.rejected,
    }


def _end(state: State) -> Record:
    """How the sweep ended; a driver that died stopped with its last record.

    It is told again after everything else, for what a trial has written beyond its driver's last word.
    """
    last = state.session[1] if state.session else 0.0
    return state.end or {"kind": "end", "status": "stopped", "note": "its driver died", "time": last}
