"""Files that are kept with a sweep's run in MLflow."""

from __future__ import annotations

from pathlib import Path

from tune.tracking.server import existing_run, is_server, readable_errors, redact


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
