"""Converting one event of a sweep to requests: MLflow's runs are found by their tags, and each event adds to one.

Requests, besides a search at the start (two if it finds nothing): at most one per epoch report; two more for a fold's run
(create, end), four for a configuration's (also its parameters at its start, its results at its end), at most four for the
sweep's. As each configuration has at least one fold, a sweep needs at most one request per report plus three per run, and
for its saved views one to read the experiment and at most five to change it, each time that the completed configurations
have doubled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tune.analysis import labels
from tune.tracking import names, saved_views
from tune.tracking.events import (
    CellEnded,
    CellStarted,
    ConfigEnded,
    ConfigStarted,
    Epoch,
    SavedViews,
    Series,
    Summary,
    SweepEnded,
    SweepStarted,
    SweepVerdict,
    TrackingEvent,
)
from tune.tracking.images import picture_files, put_picture
from tune.tracking.server import ensure_experiment, is_permanent, open_store, quoted, redact

# MLflow has three final statuses. KILLED is its own convention (in its Optuna storage) for runs stopped on purpose.
_STATUS = {
    "finished": "FINISHED",
    "complete": "FINISHED",
    "diverged": "FAILED",
    "failed": "FAILED",
    "pruned": "KILLED",
    "stopped": "KILLED",
}
_PAGE = 250
METRICS_PER_REQUEST, PARAMS_PER_REQUEST = 800, 80  # a request takes 1000 values in all, and 100 parameters
_MAX_PARAM, _MAX_TAG = 6000, 8000
_SETTLE_SECONDS = 1.0

Key = tuple[str, ...]
Points = Sequence[tuple[str, float, int]]  # metric, value, step


@dataclasses.dataclass
class _Run:
    """The state of a run in MLflow, as far as a writer needs it."""

    id: str
    name: str
    algorithm: str = ""
    status: str = "RUNNING"
    described: bool = False
    epoch: int = -1
    attempt: int = 1
    nonfinite: int = 0
    digest: str = ""
    ended: int = 0  # ms, by the ledger's clock
    curve: bool = False  # whether a configuration's curve is written
    axes: bool = False  # whether it is under the names that charts show, too
    artifacts: str = ""  # the address of its files
    note: str = ""
    verdict: str = ""


class RunWriter:
    """Converts events to requests. Raises if a request fails; applying the event again continues where it failed."""

    def __init__(self, uri: str, experiment: str, sweep: str, task: str) -> None:
        self._uri, self._experiment, self._sweep, self._task = uri, experiment, sweep, task
        self._store: Any = None
        self.experiment_id: str | None = None
        self._runs: dict[Key, _Run] | None = None
        self._in_doubt = False
        self.pictures_refused = ""
        self._source: Mapping[str, str] = {}
        self._datasets: list[Any] = []

    @classmethod
    def into(cls, store: Any, sweep: str, task: str) -> RunWriter:
        """Make a writer into an empty store without an address.

        Args:
            store: The store.
            sweep: Name of the sweep.
            task: Name of the task.

        Returns:
            The writer.
        """
        writer = cls("", "", sweep, task)
        writer._store, writer.experiment_id, writer._runs = store, "", {}
        return writer

    def connect(self, seconds: float | None = None) -> None:
        """Get the experiment's id, creating the experiment if needed; `seconds` is the timeout of this one request."""
        if self.experiment_id is None or seconds is not None:
            quick = (seconds, seconds) if seconds is not None else ()
            self.experiment_id = ensure_experiment(open_store(self._uri, *quick), self._experiment)
            self._store = open_store(self._uri)

    def apply(self, event: TrackingEvent, *more: Epoch) -> None:
        """Write an event, for a report with `more` of them: reports of one run share requests, at a third of the cost."""
        self.connect()
        if isinstance(event, SavedViews):
            assert self.experiment_id is not None
            where = (self._uri, self.experiment_id, self._sweep)
            saved_views.save(self._store, *where, event.views, event.sentence)
            return
        if self._runs is None:
            self._runs = self._find_runs()
        match event:
            case SweepStarted():
                self._source, self._datasets = source_tags(event.source), datasets(event.dataset)
                run = self._create(("sweep",), self._sweep, "", {"mlflow.note.content": event.note}, event.time_ms)
                self._describe(run, event.params)
            case ConfigStarted():
                algorithm = str(event.values.get("algorithm", ""))
                name = names.config_run_name(event.index, event.values)
                key = ("config", event.config_id)
                run = self._create(key, name, algorithm, {"config": event.config_id}, event.time_ms, parent=("sweep",))
                self._describe(run, names.config_params(event.values))
            case CellStarted():
                self._cell_started(event)
            case Epoch():
                by_cell: dict[Key, list[Epoch]] = {}
                for report in (event, *more):
                    by_cell.setdefault(_cell(report), []).append(report)
                for cell, reports in by_cell.items():
                    self._epochs(self._runs[cell], reports)
            case CellEnded():
                self._end(self._runs[_cell(event)], event.status, event.time_ms)
            case ConfigEnded():
                self._config_ended(event)
            case Summary():
                self._summary(event)
            case SweepVerdict():
                self._verdict(event)
            case SweepEnded():
                self._sweep_ended(event)
            case _:
                raise TypeError(f"{type(event).__name__} is no event of a sweep")

    def _cell_started(self, event: CellStarted) -> None:
        from mlflow.entities import RunTag

        config = self._present[("config", event.config_id)]
        name = names.fold_run_name(names.prefix_of(config.name), event.seed, event.fold)
        tags = {
            "config": event.config_id, "seed": event.seed, "fold": event.fold, "attempt": event.attempt,
            "placement": event.placement,
        }  # fmt: skip
        parent, attempt = ("config", event.config_id), event.attempt
        run = self._create(_cell(event), name, config.algorithm, tags, event.time_ms, parent=parent, attempt=attempt)
        if event.attempt > run.attempt:
            self._log(run, tags=[RunTag("attempt", str(event.attempt)), RunTag("placement", event.placement)])
            run.attempt = event.attempt

    def _epochs(self, run: _Run, reports: Sequence[Epoch]) -> None:
        """Write whole epochs per request: a run's last step then shows which of them it has."""
        points: list[tuple[str, float, int]] = []
        times: dict[int, int] = {}
        for report in reports:
            if report.epoch <= max(times, default=run.epoch):
                continue
            self._reopen(run, ("config", report.config_id), ("sweep",))
            more = _points(report.metrics().items(), report.epoch)
            if times and len(points) + len(more) > METRICS_PER_REQUEST:
                self._log(run, points, at=times)
                run.epoch, points, times = max(times), [], {}
            points += more
            times[report.epoch] = report.time_ms
        if times:
            self._log(run, points, at=times)
            run.epoch = max(times)

    def _config_ended(self, event: ConfigEnded) -> None:
        from mlflow.entities import RunTag

        run = self._present[("config", event.config_id)]
        curve = _series("curve/", event.curve, first=0)
        axes = {names.SPEED_UP_AXIS: "speed_up", names.SCORE_AXIS: "score_pct"}
        readable = _series("", {axis: event.curve[of] for axis, of in axes.items() if of in event.curve}, first=0)
        if _is_over(run, event.status, event.time_ms):
            missing = curve + readable if not run.curve else [] if run.axes else readable
            if missing and event.status in ("complete", "pruned"):
                # An older version wrote no curve, but layers from evenly spaced thresholds (of one step the later point
                # counts), or a curve under the names of keys only.
                older = (names.MEAN_SCORE,) if run.curve else (names.MEAN_SCORE, "cv/layers")
                missing += _points([(k, v) for k, v in event.metrics.items() if k in older], 0)
                self._log(run, _rounded(missing), at=event.time_ms + 1)
                run.curve = run.axes = True
            return
        points: list[tuple[str, float, int]] = []
        if event.status in ("complete", "pruned"):  # a stopped or failed one may resume, and must not repeat a step
            points += _points(event.metrics.items(), 0) + curve + readable
            run.curve = run.axes = bool(curve)
            if event.depth:
                layers = range(1, 1 + max(len(values) for values in event.depth.values()))
                points += _series("depth/", {**event.depth, "layer": layers}, first=1)
        self._log(run, _rounded(points), at=event.time_ms, tags=[RunTag("outcome", event.status)])
        self._end(run, event.status, event.time_ms)

    def _summary(self, event: Summary) -> None:
        key = ("summary", event.label)
        pictures = [[[picture.key, picture.contents] for picture in event.pictures]] if event.pictures else []
        contents = json.dumps(
            [event.metrics, event.depth, event.algorithm, event.note, *pictures], sort_keys=True, default=list
        )
        digest = hashlib.sha256(contents.encode()).hexdigest()[:16]
        old = self._present.get(key)
        if old is not None and old.digest != digest:
            self._store.delete_run(old.id)
            del self._present[key]
        tags = {"label": event.label, "digest": digest, "mlflow.note.content": event.note}
        tags |= {"mlflow.runColor": event.colour} if event.colour else {}
        tags |= {"mlflow.loggedImages": "True"} if event.pictures else {}
        parent: Key | None = ("sweep",) if ("sweep",) in self._present else None
        name, algorithm = names.summary_run_name(event.label), event.algorithm or ""
        run = self._create(key, name, algorithm, tags, event.time_ms, parent=parent, digest=digest)
        if run.status == "RUNNING":
            points = _points(event.metrics.items(), 0) + _series("", event.depth, first=1)
            self._log(run, _rounded(points), at=event.time_ms)
            self._pictures(run, event)
            self._end(run, "finished", event.time_ms)

    def _pictures(self, run: _Run, event: Summary) -> None:
        """Send pictures; a server that accepts no files is asked once, and its runs are complete without them."""
        put = getattr(self._store, "put_picture", put_picture)
        for picture in () if self.pictures_refused else event.pictures:
            files = picture_files(picture.key, event.time_ms, hashlib.sha256(picture.contents.encode()).hexdigest())
            if put is put_picture:
                self.pictures_refused = put(self._store, run.artifacts, files, picture.draw)
            else:
                put(run.id, run.artifacts, files, picture.draw)

    def _verdict(self, event: SweepVerdict) -> None:
        from mlflow.entities import RunTag

        run = self._present[("sweep",)]
        note = with_verdict(run.note, run.verdict, event.sentence)
        tags = {"verdict": _clip(event.sentence, _MAX_TAG), "mlflow.note.content": _clip(note, _MAX_TAG)}
        if (run.verdict, run.note) != tuple(tags.values()):
            self._log(run, tags=[RunTag(key, value) for key, value in tags.items()])
            run.verdict, run.note = tags.values()

    def _sweep_ended(self, event: SweepEnded) -> None:
        from mlflow.entities import RunTag

        sweep = self._present[("sweep",)]
        if _is_over(sweep, event.status, event.time_ms):
            return
        for run in self._present.values():
            if run is not sweep and run.status == "RUNNING":
                try:
                    self._end(run, "failed" if event.status == "failed" else "stopped", event.time_ms)
                except Exception as error:
                    if not is_permanent(error):
                        raise  # otherwise this run was deleted, which must not prevent the sweep's end
        if event.note:
            sweep.note = _clip(with_verdict(event.note, "", sweep.verdict), _MAX_TAG)
            self._log(sweep, tags=[RunTag("mlflow.note.content", sweep.note)])
        self._end(sweep, event.status, event.time_ms)

    @property
    def _present(self) -> dict[Key, _Run]:
        assert self._runs is not None
        return self._runs

    def _find_runs(self) -> dict[Key, _Run]:
        """Find the sweep's runs that MLflow already has, by their tags."""
        if self._in_doubt:
            # A request that timed out may still be carried out, just after the server is back.
            self._search()
            time.sleep(_SETTLE_SECONDS)
        # A proxy may answer with an empty list of runs. Search twice: trusting it would duplicate every run.
        runs = self._search() or self._search()
        self._in_doubt = False
        return runs

    def _search(self) -> dict[Key, _Run]:
        runs: dict[Key, _Run] = {}
        for run in runs_of(self._store, self.experiment_id, self._sweep):
            key = key_of(run.data.tags)
            if key is not None and key not in runs:
                runs[key] = _state_of(run)
        return runs

    def _create(
        self,
        key: Key,
        name: str,
        algorithm: str,
        tags: Mapping[str, Any],
        at: int,
        *,
        parent: Key | None = None,
        **state: Any,
    ) -> _Run:
        """Return the run of this key, creating a missing one with its tags in one request."""
        from mlflow.entities import RunTag

        if key in self._present:
            return self._present[key]
        tags = {"sweep": self._sweep, "task": self._task, "kind": key[0], **tags, **_algorithm_tags(algorithm)}
        tags |= {} if key[0] == "summary" else self._source
        if parent is not None:
            above = self._present[parent]
            tags["mlflow.parentRunId"] = above.id
            if key[0] != "summary":  # summaries follow the end, and don't reopen the sweep
                self._reopen(above, ("sweep",))
        entities = [RunTag(k, _clip(v, _MAX_TAG)) for k, v in tags.items() if v not in (None, "")]
        try:
            run = self._store.create_run(self.experiment_id, "", at, entities, name)
        except Exception:
            # The run may have been created regardless, so search before trying again.
            self._runs, self._in_doubt = None, True
            raise
        note = str(tags.get("mlflow.note.content") or "")
        self._present[key] = _Run(
            run.info.run_id, name, algorithm, artifacts=run.info.artifact_uri or "", note=note, **state
        )
        return self._present[key]

    def _describe(self, run: _Run, params: Mapping[str, Any]) -> None:
        """Write parameters, which MLflow accepts once only: a resumed sweep keeps them."""
        from mlflow.entities import Param

        if not run.described and params:
            if self._datasets:
                self._store.log_inputs(run.id, self._datasets)
            self._log(run, params=[Param(k, _clip(v, _MAX_PARAM)) for k, v in params.items() if v is not None])
        run.described = True

    def _log(
        self,
        run: _Run,
        points: Points = (),
        at: int | Mapping[int, int] = 0,
        params: Sequence[Any] = (),
        tags: Sequence[Any] = (),
    ) -> None:
        """Log points in one request (more above MLflow's limits); non-finite values are dropped and counted in a tag.

        `at` is the time of the points in ms, for all or by step.
        """
        from mlflow.entities import Metric, RunTag

        metrics = [
            Metric(name, value, at if isinstance(at, int) else at[step], step)
            for name, value, step in points
            if math.isfinite(value)
        ]
        nonfinite = run.nonfinite + len(points) - len(metrics)
        if nonfinite != run.nonfinite:
            tags = [*tags, RunTag("nonfinite", str(nonfinite))]
        requests = max(1, math.ceil(len(metrics) / METRICS_PER_REQUEST), math.ceil(len(params) / PARAMS_PER_REQUEST))
        for i in range(requests):
            some = metrics[i * METRICS_PER_REQUEST : (i + 1) * METRICS_PER_REQUEST]
            batch = params[i * PARAMS_PER_REQUEST : (i + 1) * PARAMS_PER_REQUEST]
            self._store.log_batch(run.id, some, batch, tags if i == 0 else [])
        run.nonfinite = nonfinite

    def _end(self, run: _Run, status: str, at: int) -> None:
        if not _is_over(run, status, at):
            self._set_status(run, _STATUS[status], at)

    def _reopen(self, run: _Run, *above: Key) -> None:
        """Set a stopped run that resumes to running, and those above it."""
        for one in (run, *(self._present[key] for key in above if key in self._present)):
            if one.status != "RUNNING":
                self._set_status(one, "RUNNING", None)

    def _set_status(self, run: _Run, status: str, at: int | None) -> None:
        from mlflow.entities import RunStatus

        self._store.update_run_info(run.id, RunStatus.from_string(status), at, None)
        run.status = status
        run.ended = at or run.ended


def runs_of(store: Any, experiment_id: str | None, sweep: str) -> Iterator[Any]:
    """Iterate over MLflow's runs of a sweep, the oldest first, with a request per 250.

    Args:
        store: MLflow's store.
        experiment_id: Id of the experiment.
        sweep: Name of the sweep.

    Yields:
        MLflow runs.
    """
    from mlflow.entities import ViewType

    token = None
    while True:
        filter_string, order = f"tags.sweep = {quoted(sweep)}", ["attributes.start_time ASC"]
        page = store.search_runs([experiment_id], filter_string, ViewType.ACTIVE_ONLY, _PAGE, order, token)
        yield from page
        token = page.token
        if not token:
            return


def latest_steps(run: Any) -> dict[str, int]:
    """Return the last step of each metric of a run from a search, which only MLflow's private list shows."""
    return {metric.key: metric.step for metric in run.data._metric_objs or ()}


def _is_over(run: _Run, status: str, at: int) -> bool:
    """Return whether a run has ended with this status, or later: a replayed old end changes nothing."""
    return run.status == _STATUS[status] or (run.status != "RUNNING" and at <= run.ended)


def _points(metrics: Iterable[tuple[str, float]], step: int) -> list[tuple[str, float, int]]:
    return [(name, float(value), step) for name, value in metrics if value is not None]


def _series(prefix: str, series: Series, first: int) -> list[tuple[str, float, int]]:
    """Return one point per step, counted from `first`; a gap (None) stays a gap."""
    points = [(prefix + name, v, step) for name, values in series.items() for step, v in enumerate(values, first)]
    return [(name, float(value), step) for name, value, step in points if value is not None]


def _rounded(points: Points) -> list[tuple[str, float, int]]:
    """Round to 6 decimals, since MLflow's table prints all digits."""
    return [(name, round(value, 6), step) for name, value, step in points]


def _algorithm_tags(algorithm: str) -> dict[str, str | None]:
    if not algorithm:
        return {}
    return {
        "algorithm": algorithm,
        "approach": labels.algorithm_label(algorithm),
        "mlflow.runColor": labels.algorithm_colour(algorithm),
    }


def source_tags(source: Mapping[str, str]) -> dict[str, str]:
    """Return MLflow's own tags of a program.

    Args:
        source: Its `name`, and its git `commit` if it has one; empty: no tags.
    """
    if not source:
        return {}
    tags = {"mlflow.source.name": source["name"], "mlflow.source.type": "LOCAL"}
    return tags | ({"mlflow.source.git.commit": source["commit"]} if source.get("commit") else {})


def datasets(dataset: Mapping[str, Any]) -> list[Any]:
    """Return a training split as MLflow's input of a run.

    Args:
        dataset: `name`, `digest`, `rows` and `source`; empty: no input.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if not dataset:
        return []
    entity = Dataset(
        name=str(dataset["name"])[:500],
        digest=str(dataset["digest"])[:36],
        source_type="local",
        source=json.dumps({"uri": redact(str(dataset["source"]))}),
        profile=json.dumps({"num_rows": dataset["rows"]}),
    )
    return [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])]


def _cell(event: CellStarted | Epoch | CellEnded) -> Key:
    return ("fold", event.config_id, str(event.seed), str(event.fold))


def key_of(tags: Mapping[str, str]) -> Key | None:
    """Return a run's identity within its sweep, from its tags; None for a run of another program."""
    parts = {"sweep": (), "config": ("config",), "fold": ("config", "seed", "fold"), "summary": ("label",)}
    key_parts: tuple[str, ...] | None = parts.get(tags.get("kind", ""))
    if key_parts is None or any(name not in tags for name in key_parts):
        return None
    return (tags["kind"], *(labels.present(tags[name]) if name == "label" else tags[name] for name in key_parts))


def _state_of(run: Any) -> _Run:
    tags = run.data.tags
    return _Run(
        id=run.info.run_id,
        name=run.info.run_name,
        algorithm=tags.get("algorithm", ""),
        status=run.info.status,
        described=bool(run.data.params),
        epoch=max(latest_steps(run).values(), default=-1),
        attempt=int(tags.get("attempt", 1)),
        nonfinite=int(tags.get("nonfinite", 0)),
        digest=tags.get("digest", ""),
        ended=run.info.end_time or 0,
        curve="curve/score" in run.data.metrics,
        axes=names.SPEED_UP_AXIS in run.data.metrics,
        artifacts=run.info.artifact_uri or "",
        note=tags.get("mlflow.note.content", ""),
        verdict=tags.get("verdict", ""),
    )


def with_verdict(note: str, old: str, new: str) -> str:
    """Return a description with the verdict in it, in place of the old one; a user's own text stays.

    Args:
        note: The description.
        old: The verdict that it may hold.
        new: The present verdict.
    """
    if old and old in note:
        return note.replace(old, new)
    return "\n\n".join(dict.fromkeys(part for part in (new, note) if part))


def _clip(value: Any, most: int) -> str:
    """Return a value as MLflow stores it: text within its limit, without the secrets of any URI."""
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, Mapping | list | tuple):
        value = json.dumps(value, default=str)
    return redact(str(value))[:most]
