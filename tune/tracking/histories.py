"""Metric histories of many runs at once: what MLflow's charts read, a request per metric and 100 runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tune.tracking.server import ForeignAnswer

#: MLflow's limits: of runs in a request, and of points of each or of all, above which it would leave some out.
RUNS, POINTS, ALL_POINTS = 100, 2500, 25_000

Point = tuple[int, float]  # step, value


def histories(store: Any, run_ids: Sequence[str], metric: str) -> dict[str, list[Point]]:
    """All points of a metric by run; a run without any is left out.

    Raises what the store raises: where one of the runs was deleted, MLflow answers for none of them.
    """
    found: dict[str, list[Point]] = {}
    for start in range(0, len(run_ids), RUNS):
        for run_id, step, value in _points(store, run_ids[start : start + RUNS], metric):
            found.setdefault(run_id, []).append((step, value))
    return found


def _points(store: Any, run_ids: Sequence[str], metric: str) -> Iterator[tuple[str, int, float]]:
    if hasattr(store, "get_metric_history_bulk"):  # MLflow's database itself: one query
        for held in store.get_metric_history_bulk(run_ids, metric, RUNS * POINTS):
            yield held.run_id, held.step, held.value
        return
    if (quick := store.points_of(run_ids, metric, ALL_POINTS)) is not None and len(quick) < ALL_POINTS:
        for point in quick:
            yield point["run_id"], int(point["step"]), float(point["value"])
        return
    yield from _slowly(store, run_ids, metric)


def _slowly(store: Any, run_ids: Sequence[str], metric: str) -> Iterator[tuple[str, int, float]]:
    """By the interface that is documented, where the server asks its database three times for each run."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.service_pb2 import GetMetricHistoryBulkInterval
    from mlflow.utils.proto_json_utils import message_to_json

    request = GetMetricHistoryBulkInterval(run_ids=run_ids, metric_key=metric, max_results=POINTS)
    try:
        # The store has a method of this name, which asks for each run twice.
        answer = store._call_endpoint(GetMetricHistoryBulkInterval, message_to_json(request))
    except (MlflowException, ForeignAnswer) as error:
        if error.error_code not in ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"):
            raise
        for run_id in run_ids:  # an older server
            for held in store.get_metric_history(run_id, metric):
                yield run_id, held.step, held.value
        return
    for held in answer.metrics:
        yield held.run_id, held.step, held.value
