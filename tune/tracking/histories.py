"""Metric histories of many runs at once, as MLflow's charts read them: a request per metric and 100 runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tune.tracking.server import ForeignAnswer

#: MLflow's limits: runs in a request, points of each run, and points of all, above which it drops some.
RUNS, POINTS, ALL_POINTS = 100, 2500, 25_000

Point = tuple[int, float]  # step, value


def histories(store: Any, run_ids: Sequence[str], metric: str) -> dict[str, list[Point]]:
    """Read all points of a metric.

    Raises the store's errors; if one of the runs was deleted, MLflow refuses the whole request.

    Args:
        store: MLflow's store.
        run_ids: The MLflow runs.
        metric: Name of the metric.

    Returns:
        Run id → (step, value) of each point, without runs that have none.
    """
    by_run: dict[str, list[Point]] = {}
    for start in range(0, len(run_ids), RUNS):
        for run_id, step, value in _points(store, run_ids[start : start + RUNS], metric):
            by_run.setdefault(run_id, []).append((step, value))
    return by_run


def _points(store: Any, run_ids: Sequence[str], metric: str) -> Iterator[tuple[str, int, float]]:
    if hasattr(store, "get_metric_history_bulk"):  # MLflow's database itself: one query
        for point in store.get_metric_history_bulk(run_ids, metric, RUNS * POINTS):
            yield point.run_id, point.step, point.value
        return
    if (quick := store.points_of(run_ids, metric, ALL_POINTS)) is not None and len(quick) < ALL_POINTS:
        for point in quick:
            yield point["run_id"], int(point["step"]), float(point["value"])
        return
    yield from _slowly(store, run_ids, metric)


def _slowly(store: Any, run_ids: Sequence[str], metric: str) -> Iterator[tuple[str, int, float]]:
    """Read points by the documented interface, for which the server queries its database three times per run."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.service_pb2 import GetMetricHistoryBulkInterval
    from mlflow.utils.proto_json_utils import message_to_json

    request = GetMetricHistoryBulkInterval(run_ids=run_ids, metric_key=metric, max_results=POINTS)
    try:
        # The store's own method of this name requests each run twice.
        answer = store._call_endpoint(GetMetricHistoryBulkInterval, message_to_json(request))
    except (MlflowException, ForeignAnswer) as error:
        if error.error_code not in ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"):
            raise
        for run_id in run_ids:  # an older server
            for point in store.get_metric_history(run_id, metric):
                yield run_id, point.step, point.value
        return
    for point in answer.metrics:
        yield point.run_id, point.step, point.value
