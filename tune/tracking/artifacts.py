"""Files that are kept with a sweep's run in MLflow: pages, and what else people ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from leebert.errors import TrackingError
from tune.analysis.html import HtmlPage
from tune.space.spec import experiment_of
from tune.store.folder import SweepFolder, spec_of
from tune.tracking.server import existing_run, is_server, readable_errors, redact, resolve_uri


def log_file(uri: str, experiment: str, sweep: str, path: Path, *, again: str, folder: str = "reports") -> str:
    """Put a file into the artifacts of the sweep's own run; returns where it stands.

    Raises TrackingError; `again` is the command that writes a missing sweep to MLflow.
    """
    from mlflow import MlflowClient

    with readable_errors(uri):
        run = existing_run(uri, experiment, sweep, "sweep", again=again)[1]
        MlflowClient(tracking_uri=uri).log_artifact(run.run_id, str(path), folder)
    if not is_server(uri):
        return f"{folder}/{path.name} of run {run.run_id}"
    return (
        f"{redact(uri).rstrip('/')}/#/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts/{folder}/{path.name}"
    )


def again_by(folder: SweepFolder, tracking_uri: str | None = None) -> str:
    """The command that fills MLflow from a sweep's folder, from wherever it is given."""
    return f"leebert-tune rebuild-mlflow {folder.path}" + (
        f" --tracking-uri {redact(tracking_uri)}" if tracking_uri else ""
    )


def deliver(
    page: HtmlPage,
    path: Path,
    folders: Sequence[SweepFolder],
    *,
    tracking_uri: str | None = None,
    experiment: str | None = None,
    say: Callable[[str], None],
) -> Path:
    """Write a page, and put it beside its sweeps' runs in MLflow; where that can't be done, say so and go on."""
    page.write(path)
    for folder in folders:
        spec = spec_of(folder)
        try:
            uri, again = resolve_uri(tracking_uri or spec.tracking.uri), again_by(folder, tracking_uri)
            logged = log_file(uri, experiment or experiment_of(spec), folder.name, path, again=again)
            say(f"{path}, and in MLflow: {logged}")
        except TrackingError as error:
            say(f"{path}; not logged to MLflow: {error}")
    return path
