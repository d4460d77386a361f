"""Files that are kept with a sweep's run in MLflow."""

from __future__ import annotations

from pathlib import Path

from leebert.errors import TrackingError
from tune.tracking_store import advice, is_server, open_store, quoted, redact

#: Seconds that the first request may take: who asked for a page is waiting for it.
PATIENCE = 5.0


def log_file(uri: str, experiment: str, sweep: str, path: Path, *, again: str, folder: str = "reports") -> str:
    """Put a file into the artifacts of the sweep's own run; returns where it stands.

    Raises TrackingError; `again` is the command that writes a missing sweep to MLflow.
    """
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    database = uri.removeprefix("sqlite:///")
    if database != uri and not Path(database).exists():
        raise TrackingError(f"there is no {redact(uri)}; name the server that has the sweep")  # which would be created
    try:
        # The first request is one that is not repeated for minutes, as the client's own are.
        store = open_store(uri, PATIENCE, PATIENCE)
        known = store.get_experiment_by_name(experiment)
        where = f"tags.sweep = {quoted(sweep)} AND tags.kind = 'sweep'"
        runs = store.search_runs([known.experiment_id], where, ViewType.ACTIVE_ONLY, 1) if known else []
        if not runs:
            raise TrackingError(
                f"{redact(uri)}: experiment {experiment!r} has no run of sweep {sweep}; "
                f"write it there by: {again}, or name the server that has it"
            )
        run = runs[0].info
        MlflowClient(tracking_uri=uri).log_artifact(run.run_id, str(path), folder)
    except TrackingError:
        raise
    except Exception as error:
        # No cause is chained: only the message was cleaned of secrets.
        raise TrackingError(advice(uri, error)) from None
    if not is_server(uri):
        return f"{folder}/{path.name} of run {run.run_id}"
    return (
        f"{redact(uri).rstrip('/')}/#/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts/{folder}/{path.name}"
    )
