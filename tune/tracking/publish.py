"""Summaries and saved views of a sweep in MLflow, updated while the sweep runs."""

from __future__ import annotations

import logging
from typing import Any, Protocol

from leebert.errors import SweepError
from tune.space import SweepSpec
from tune.space.spec import experiment_of
from tune.store.folder import SweepFolder, spec_of
from tune.store.ledger import SweepState
from tune.tracking.artifacts import rebuild_command
from tune.tracking.events import SavedViews, SweepVerdict, TrackingEvent
from tune.tracking.saved_views import doubts, links, save_now
from tune.tracking.server import resolve_uri
from tune.tracking.summary import pool_of, summaries
from tune.tracking.views import LOADED_RUNS, saved_views, view_contents

log = logging.getLogger(__name__)


class Receiver(Protocol):
    """A receiver of a sweep's events, such as the tracker."""

    sweep: str

    def put(self, event: TrackingEvent) -> None: ...


class Publisher:
    """Sends summaries and views at a sweep's start, each time its completed configurations have doubled, and at its end.

    They exist from the first hour of a sweep of days, and are only written a few times. Errors are reported and never
    raised, since they must not end training.
    """

    def __init__(self, tracker: Receiver, spec: SweepSpec, folder: SweepFolder):
        self._tracker, self._spec, self._folder = tracker, spec, folder
        self._next, self._begun, self._sentence = 1, 0, ""

    def start(self, state: SweepState) -> None:
        self._views(state)
        self._next, self._begun = _next_after(_completed_count(state)), len(state.configs)

    def follow(self, state: SweepState) -> None:
        """Update summaries and views if due; called every few seconds."""
        completed, begun = _completed_count(state), len(state.configs)
        too_many = self._begun <= LOADED_RUNS < begun  # the titles then change
        if completed < self._next and not too_many:
            return
        self._next, self._begun = _next_after(completed), begun
        self._summaries(state)
        self._views(state)

    def end(self, state: SweepState) -> None:
        """Send the final summaries and views, before the sweep's end closes its run in MLflow."""
        self._summaries(state, by_samples=True)
        self._views(state)

    def _summaries(self, state: SweepState, *, by_samples: bool = False) -> None:
        try:  # while workers train, the driver reads no validation logits
            made = summaries(pool_of(self._folder, self._spec, state), by_samples=by_samples)
            for event in made.events:
                self._tracker.put(event)
            self._sentence = made.sentence
            if made.sentence:
                self._tracker.put(SweepVerdict(made.sentence))
        except Exception as error:
            log.warning(f"no summaries: {type(error).__name__}: {error}")

    def _views(self, state: SweepState) -> None:
        try:
            views = saved_views(self._tracker.sweep, view_contents(self._spec, state))
            self._tracker.put(SavedViews(views, self._sentence))
        except Exception as error:
            log.warning(f"no saved views: {type(error).__name__}: {error}")


def show(
    folder: SweepFolder,
    *,
    tracking_uri: str | None = None,
    experiment: str | None = None,
) -> dict[str, Any]:
    """Write only the current views of a sweep that MLflow has.

    Args:
        folder: The sweep's folder.
        tracking_uri: MLflow's address; None: the sweep's own.
        experiment: Name of the experiment; None: the sweep's own.

    Returns:
        A JSON-ready summary.

    Raises:
        SweepError: The sweep has no configurations.
        TrackingError: MLflow lacks the sweep or refuses its views.
    """
    spec, state = spec_of(folder), folder.ledger.read(epochs=False)
    if not state.history():
        raise SweepError(f"sweep {folder.name} has no configuration yet, and so no views: wait until one has started")
    uri = resolve_uri(tracking_uri or spec.tracking.uri)
    views = saved_views(folder.name, view_contents(spec, state))
    sentence = summaries(pool_of(folder, spec, state)).sentence
    command = rebuild_command(folder, tracking_uri)
    experiment_id = save_now(uri, experiment or experiment_of(spec), folder.name, views, sentence, command=command)
    return {
        "sweep": folder.name,
        "views": links(uri, experiment_id, folder.name, views),
        "verdict": sentence,
        "complete": _completed_count(state),
        "running": folder.driver() is not None,
        "note": doubts(uri),
    }


def _next_after(complete: int) -> int:
    """Return the number of completed configurations for the next update: double, and above MLflow's limit."""
    return max(1, LOADED_RUNS + 1 if complete <= LOADED_RUNS < 2 * complete else 2 * complete)


def _completed_count(state: SweepState) -> int:
    return sum(c.state == "complete" for c in state.configs.values())
