"""Files in the artifacts of a sweep's run in MLflow, such as HTML pages."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from leebert.errors import TrackingError
from tune.analysis.html import HtmlPage
from tune.space.spec import experiment_of
from tune.store.folder import SweepFolder, spec_of
from tune.tracking.server import existing_run, is_server, readable_errors, redact, resolve_uri

log = logging.getLogger(__name__)


def log_file(uri: str, experiment: str, sweep: str, path: Path, *, command: str, folder: str = "reports") -> str:
    """Log a file to the artifacts of the sweep's own run; return its address.

    Args:
        uri: MLflow's address.
        experiment: The experiment's name.
        sweep: The sweep's name.
        path: The file.
        command: The command that writes a missing sweep to MLflow, for the error message.
        folder: The folder within the artifacts.

    Raises:
        TrackingError: If MLflow cannot be used or lacks the sweep.
    """
    from mlflow import MlflowClient

    with readable_errors(uri):
        run = existing_run(uri, experiment, sweep, "sweep", command=command)[1]
        MlflowClient(tracking_uri=uri).log_artifact(run.run_id, str(path), folder)
    if not is_server(uri):
        return f"{folder}/{path.name} of run {run.run_id}"
    return (
        f"{redact(uri).rstrip('/')}/#/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts/{folder}/{path.name}"
        "?workflowType=machine_learning"
    )


def rebuild_command(folder: SweepFolder, tracking_uri: str | None = None) -> str:
    """Return the command that fills MLflow from a sweep's folder, valid in any working folder."""
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
) -> Path:
    """Write a page and log it to its sweeps' runs in MLflow; report an error there without raising it.

    Args:
        page: The page.
        path: The file to write.
        folders: The sweeps.
        tracking_uri: MLflow's address; None: each sweep's own.
        experiment: Name of the experiment; None: each sweep's own.

    Returns:
        The written file.
    """
    page.write(path)
    for folder in folders:
        spec = spec_of(folder)
        try:
            uri, command = resolve_uri(tracking_uri or spec.tracking.uri), rebuild_command(folder, tracking_uri)
            logged = log_file(uri, experiment or experiment_of(spec), folder.name, path, command=command)
            log.info(f"{path}, and in MLflow: {logged}")
        except TrackingError as error:
            log.warning(f"{path}; not logged to MLflow: {error}")
    return path
