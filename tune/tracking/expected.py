"""The runs that an MLflow server should hold after all events of a sweep, computed in memory."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from tune.tracking.events import Epoch, SavedViews, TrackingEvent
from tune.tracking.runs import Key, RunWriter, key_of


@dataclasses.dataclass
class ExpectedRun:
    """A run as MLflow should hold it.

    Attributes:
        key: Its identity within the sweep.
        name: Its name.
        tags: Its tags.
        parent: The key of its parent, since each server assigns its own ids.
        status: MLflow's status.
        end_ms: Its end in ms.
        params: Its parameters.
        metrics: By name, step → (value, time in ms).
        rewritten: Earlier values of its tags.
        pictures: The names of a picture's files, and what draws it.
        datasets: Its datasets, MLflow's `DatasetInput`.
    """

    key: Key
    name: str
    tags: dict[str, str]
    parent: Key | None = None
    status: str = "RUNNING"
    end_ms: int | None = None
    params: dict[str, str] = dataclasses.field(default_factory=dict)
    metrics: dict[str, dict[int, tuple[float, int]]] = dataclasses.field(default_factory=dict)
    rewritten: dict[str, set[str]] = dataclasses.field(default_factory=dict)
    pictures: dict[tuple[str, ...], Callable[[], bytes]] = dataclasses.field(default_factory=dict)
    datasets: list[Any] = dataclasses.field(default_factory=list)


class MemoryStore:
    """Carries out the requests of :class:`RunWriter` in memory, as MLflow does."""

    def __init__(self) -> None:
        self.runs: dict[str, ExpectedRun] = {}
        self._ids = (f"memory-{number}" for number in itertools.count())

    def create_run(self, _: str, __: str, ___: int, tags: Iterable[Any], name: str) -> Any:
        values = {tag.key: tag.value for tag in tags}
        key, above = key_of(values), values.pop("mlflow.parentRunId", None)
        assert key is not None
        run_id = next(self._ids)
        self.runs[run_id] = ExpectedRun(key, name, values, self.runs[above].key if above else None)
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id, artifact_uri=""))

    def log_batch(self, run_id: str, metrics: Sequence[Any], params: Sequence[Any], tags: Sequence[Any]) -> None:
        run = self.runs[run_id]
        for metric in metrics:
            run.metrics.setdefault(metric.key, {})[metric.step] = (metric.value, metric.timestamp)
        run.params.update({param.key: param.value for param in params})
        for tag in tags:
            if tag.key in run.tags:
                run.rewritten.setdefault(tag.key, set()).add(run.tags[tag.key])
            run.tags[tag.key] = tag.value

    def update_run_info(self, run_id: str, status: int, end_ms: int | None, _: None) -> None:
        from mlflow.entities import RunStatus

        self.runs[run_id].status, self.runs[run_id].end_ms = RunStatus.to_string(status), end_ms

    def put_picture(self, run_id: str, _: str, files: Sequence[str], draw: Callable[[], bytes]) -> None:
        self.runs[run_id].pictures[tuple(files)] = draw

    def log_inputs(self, run_id: str, datasets: Sequence[Any]) -> None:
        self.runs[run_id].datasets = list(datasets)

    def delete_run(self, run_id: str) -> None:
        del self.runs[run_id]


def expected_runs(events: Iterable[TrackingEvent], sweep: str, task: str) -> dict[Key, ExpectedRun]:
    """Compute the runs that events create on a server; saved views create none.

    Args:
        events: All events of a sweep, in order.
        sweep: Name of the sweep.
        task: Name of the task.

    Returns:
        The runs by key.
    """
    store = MemoryStore()
    writer = RunWriter.into(store, sweep, task)
    for event in events:
        if not isinstance(event, SavedViews):
            writer.apply(event)
    return {run.key: run for run in store.runs.values()}


def in_parts(events: Sequence[TrackingEvent], sweep: str, task: str, most: int) -> Iterator[dict[Key, ExpectedRun]]:
    """Compute all runs of a sweep's events in parts, so that a large sweep's values are never in memory all at once.

    First come the runs of no configuration: their end depends on every configuration, but not on the metrics of its epochs.

    Args:
        events: All events of the sweep, in order.
        sweep: Name of the sweep.
        task: Name of the task.
        most: Largest number of folds of a part; a part has at least one configuration.

    Yields:
        The runs of a part, by key.
    """
    outline = (dataclasses.replace(e, metrics=dict) if isinstance(e, Epoch) else e for e in events)
    runs = expected_runs(outline, sweep, task)
    yield {key: run for key, run in runs.items() if "config" not in run.tags}
    folds = collections.Counter(run.tags["config"] for run in runs.values() if run.key[0] == "fold")
    part: set[str] = set()
    for config in dict.fromkeys(run.tags["config"] for run in runs.values() if "config" in run.tags):
        if part and sum(folds[one] for one in (*part, config)) > most:
            yield _of_configurations(part, events, sweep, task)
            part = set()
        part.add(config)
    if part:
        yield _of_configurations(part, events, sweep, task)


def _of_configurations(
    configs: Collection[str], events: Sequence[TrackingEvent], sweep: str, task: str
) -> dict[Key, ExpectedRun]:
    selected = (event for event in events if getattr(event, "config_id", None) in (None, *configs))
    runs = expected_runs(selected, sweep, task)
    return {key: run for key, run in runs.items() if run.tags.get("config") in configs}
