"""Saved views in MLflow: tags of the experiment, and a line of links in its description, shared by its sweeps."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from leebert.errors import TrackingError
from tune.tracking.events import View
from tune.tracking.server import existing_run, is_permanent, is_server, readable_errors, redact, server_version
from tune.tracking.views import KNOWN_VERSIONS, decoded, encoded, view_key

#: The default address of `mlflow ui`.
LOCAL_UI = "http://127.0.0.1:5000"

_TAG = "mlflow.sharedViewState."
_NOTE = "mlflow.note.content"
_MAX_NOTE = 20_000
_LEFT_OUT = (
    "_Links of older sweeps are dropped for lack of space: `leebert-tune views NAME` prints them and puts them on top._"
)

# Errors of a server that does not support such tags or forbids them. Views are then skipped; results would be retried.
_UNWILLING = {"ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED", "PERMISSION_DENIED"}


class ViewsRefused(Exception):
    """MLflow responds but does not accept the views. The sweep's results are in its runs regardless."""


def save(store: Any, uri: str, experiment_id: str, sweep: str, views: Sequence[View], sentence: str = "") -> None:
    """Write missing and changed views, and their links.

    Args:
        store: MLflow's store.
        uri: MLflow's address.
        experiment_id: Id of the experiment.
        sweep: Name of the sweep.
        views: The views.
        sentence: The sweep's verdict; empty without one.

    Raises:
        ViewsRefused: MLflow accepts no such tags. Any other exception may be temporary; calling again completes it.
    """
    experiment = store.get_experiment(experiment_id)
    try:
        for key, value in _changes(experiment.tags, experiment_id, sweep, views, sentence).items():
            _set(store, experiment_id, key, value)
    except Exception as error:
        if not is_permanent(error) and getattr(error, "error_code", None) not in _UNWILLING:
            raise
        reason = redact(" ".join(str(error).split()))[:300]
        raise ViewsRefused(
            f"MLflow at {redact(uri)} doesn't accept the saved views ({reason}); its runs are complete. "
            f"`leebert-tune views {sweep}` tries again."
        ) from None


def save_now(uri: str, experiment: str, sweep: str, views: Sequence[View], sentence: str = "", *, command: str) -> str:
    """Write the views of a sweep that MLflow has.

    Args:
        uri: MLflow's address.
        experiment: Name of the experiment.
        sweep: Name of the sweep.
        views: The views.
        sentence: The sweep's verdict; empty without one.
        command: The command that fills MLflow, for messages.

    Returns:
        The experiment's id.

    Raises:
        TrackingError: MLflow lacks the sweep, or refuses its views.
    """
    with readable_errors(uri):
        store, run = existing_run(uri, experiment, sweep, "config", command=command)
        try:
            save(store, uri, run.experiment_id, sweep, views, sentence)
        except ViewsRefused as error:
            raise TrackingError(str(error)) from None
    return str(run.experiment_id)


def links(uri: str, experiment_id: str, sweep: str, views: Sequence[View]) -> dict[str, str]:
    """Return each view's address by its name; for a database the default address of `mlflow ui`.

    Args:
        uri: MLflow's address.
        experiment_id: Id of the experiment.
        sweep: Name of the sweep.
        views: The views.
    """
    base = redact(uri).rstrip("/") if is_server(uri) else LOCAL_UI
    return {view.name: f"{base}/{_fragment(experiment_id, sweep, view)}" for view in views}


def doubts(uri: str) -> str:
    """Return a note if the server's version is not one that the views were made for; empty otherwise."""
    version = server_version(uri) if is_server(uri) else ""
    if not version or ".".join(version.split(".")[:2]) in KNOWN_VERSIONS:
        return ""
    made_for = " and ".join(KNOWN_VERSIONS)
    return f"the views were made for MLflow {made_for}, this is {version}: if they show no charts, use the first link"


def _fragment(experiment_id: str, sweep: str, view: View) -> str:
    """`compareRunsMode` is not part of a view: without it, its table would open."""
    query = f"viewStateShareKey={view_key(sweep, view)}&compareRunsMode=CHART&workflowType=machine_learning"
    return f"#/experiments/{experiment_id}/runs?{query}"


def _set(store: Any, experiment_id: str, key: str, value: str) -> None:
    from mlflow.entities import ExperimentTag

    store.set_experiment_tag(experiment_id, ExperimentTag(key, value))


def lacking(store: Any, experiment_id: str, sweep: str, views: Sequence[View], sentence: str = "") -> int:
    """Count the missing and changed tags of the views and their links.

    Args:
        store: MLflow's store.
        experiment_id: Id of the experiment.
        sweep: Name of the sweep.
        views: The views.
        sentence: The sweep's verdict; empty without one.

    Returns:
        Number of tags.
    """
    return len(_changes(store.get_experiment(experiment_id).tags, experiment_id, sweep, views, sentence))


def _changes(
    tags: Mapping[str, str], experiment_id: str, sweep: str, views: Sequence[View], sentence: str
) -> dict[str, str]:
    """Return the tags to write; none if all are up to date, so that a replay changes nothing."""
    now, changes = time.time_ns() // 1_000_000, {}
    # The menu shows the newest first, so the first view gets the latest time.
    for rank, view in enumerate(reversed(views)):
        key, created = _TAG + view_key(sweep, view), now
        try:
            name, state, created = decoded(tags[key])
            if (name, state) == (view.name, view.state):
                continue
        except (KeyError, ValueError):
            pass  # missing, or written by another program
        changes[key] = encoded(view, created, now + rank)
    note = _description(tags.get(_NOTE, ""), experiment_id, sweep, views, sentence)
    if note != tags.get(_NOTE, ""):
        changes[_NOTE] = note
    return changes


def _description(old: str, experiment_id: str, sweep: str, views: Sequence[View], sentence: str) -> str:
    """Return the description with the sweep's line of links and its verdict, in its old place or above all others.

    If it would exceed MLflow's limit, the oldest links are dropped, with a line that states it. The links have no host,
    since readers may reach the server under another name than the sweep does.
    """
    named = [f"[{view.name.removeprefix(f'{sweep}: ')}]({_fragment(experiment_id, sweep, view)})" for view in views]
    start = f"**{sweep}**: ["
    # MLflow shows one line: the result, without how many runs would be needed for a difference.
    line = f"**{sweep}**: " + " · ".join(named) + (f" — {sentence.partition('; ')[0]}" if sentence else "")
    lines = old.split("\n\n") if old else []
    at = next((i for i, one in enumerate(lines) if one.startswith(start) and _is_ours(one)), None)
    if at is None:
        lines.insert(0, line)
    else:
        lines[at] = line
    while len(whole := "\n\n".join(lines)) > _MAX_NOTE:
        others = [i for i, one in enumerate(lines) if one != line and _is_ours(one)]
        if not others:
            return old  # a user's own text takes all the space
        oldest = others[-1]  # new ones are put above
        lines[oldest : oldest + 1] = [] if _LEFT_OUT in lines else [_LEFT_OUT]
    return whole


def _is_ours(line: str) -> bool:
    return line.startswith("**") and "](#/experiments/" in line and "viewStateShareKey=" in line
