"""Comparing MLflow's runs of a sweep with the expected ones, value by value, and writing the differences.

A response proves little: a proxy may send "{}" for a request that never reached MLflow, as MLflow does for a successful one.
So `rebuild-mlflow` reads everything back (a request for each metric and 100 runs), writes the differences, and reads again.
A run that cannot be mended in place is deleted (MLflow keeps deleted runs) and created again: MLflow cannot delete single
points or parameters. At a sweep's end only the numbers of the epochs are compared, a request for 100 runs.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from leebert.errors import LeaseError, TrackingError
from tune.tracking import names, saved_views
from tune.tracking.events import SavedViews, TrackingEvent
from tune.tracking.expected import ExpectedRun, in_parts
from tune.tracking.histories import RUNS, Point, histories
from tune.tracking.images import pictures_of, put_picture, refusal_reason, refusal_warning
from tune.tracking.runs import METRICS_PER_REQUEST, PARAMS_PER_REQUEST, Key, key_of, latest_steps, runs_of
from tune.tracking.server import WAITED_FOR_SECONDS, advice, is_permanent, is_refusal, open_store, redact

if TYPE_CHECKING:
    from tune.store.ledger import SweepState
    from tune.tracking.tracker import Tracker

log = logging.getLogger(__name__)

#: How often a request is sent that MLflow, or a proxy in its place, rejects as wrong.
TRIES = 4

#: Seconds before a request is sent again; each further pause is twice as long.
FIRST_PAUSE_SECONDS = 0.1

#: Tags that a user may change in MLflow's pages: they are only overwritten if they hold an earlier value of the sweep's.
_USERS = frozenset({"mlflow.note.content", "mlflow.runColor", "mlflow.runName"})
#: A metric that every epoch has.
_EVERY_EPOCH = "seconds"
_TOLERANCE = 1e-9

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class RunDifference:
    """A difference between MLflow's run and the expected one. `absent`: the run must be created."""

    run: str
    what: str
    absent: bool = False

    def __str__(self) -> str:
        return f"{self.run}: {self.what}"


@dataclasses.dataclass
class _Gap:
    """The differences of one run. `wrong`: metrics and parameters that cannot be mended in place."""

    points: list[tuple[str, int]] = dataclasses.field(default_factory=list)  # metric, step
    params: list[str] = dataclasses.field(default_factory=list)
    tags: dict[str, str] = dataclasses.field(default_factory=dict)
    ended: bool = True
    datasets: bool = False  # whether it lacks one
    pictures: bool = False  # whether it lacks one
    wrong: list[str] = dataclasses.field(default_factory=list)

    def __bool__(self) -> bool:
        lacking = self.points or self.params or self.tags or self.datasets or self.pictures
        return bool(lacking or self.wrong or not self.ended)


class Audit:
    """Compares the runs of one sweep on one server with the sweep's events, and writes the differences."""

    def __init__(
        self,
        uri: str,
        experiment_id: str,
        sweep: str,
        task: str,
        events: Sequence[TrackingEvent],
        *,
        may_send: Callable[[], None],
        patience: float,
        with_views: bool = True,
        pictures_refused: str = "",
    ) -> None:
        """Prepare an audit.

        Args:
            uri: MLflow's address.
            experiment_id: The experiment's id.
            sweep: The sweep's name.
            task: The task's name.
            events: The sweep's events.
            may_send: Raises LeaseError once another driver has taken the sweep over.
            patience: Seconds for which the server may be unreachable.
            with_views: Whether this server accepts saved views.
            pictures_refused: Why it accepts no files of runs; empty: it may.
        """
        self._uri, self._experiment_id, self._sweep, self._task = uri, experiment_id, sweep, task
        self._events, self._may_send, self._patience = events, may_send, patience
        self._store, self._with_views, self.pictures_refused = open_store(uri), with_views, pictures_refused

    def differences(self, *, mend: bool) -> list[RunDifference]:
        """Return all differences; with `mend` write them at once, except for runs that must be created.

        Raises:
            TrackingError: If the server stays unreachable.
            LeaseError: If another driver has taken over.
        """
        runs, differences = self._runs(mend)
        for part in in_parts(self._events, self._sweep, self._task, RUNS):
            present = {key: runs[key] for key in part if key in runs}
            values = self._values(part, present)
            for key, expected in part.items():
                if key not in present:
                    differences.append(RunDifference(expected.name, "the run is missing", absent=True))
                    continue
                parent = runs[expected.parent].info.run_id if expected.parent in runs else None
                gap = _gap(expected, present[key], values.get(key, {}), parent)
                gap.pictures = self._lacks_pictures(expected, present[key], mend=mend and not gap.wrong)
                if gap:
                    text = _in_words(gap, expected, present[key])
                    differences.append(RunDifference(expected.name, text, bool(gap.wrong)))
                    if mend:
                        self._mend(present[key].info.run_id, expected, gap)
        return differences + self._views(mend)

    def _lacks_pictures(self, expected: ExpectedRun, present: Any, *, mend: bool) -> bool:
        """Return whether a run lacks pictures, and with `mend` send them; False if the server accepts no files."""
        if self.pictures_refused or not expected.pictures:
            return False
        address = present.info.artifact_uri
        files = self._retry(self._files, address)
        lacking = {own: draw for own, draw in expected.pictures.items() if not files.issuperset(own)}
        # Listing proves little: of a folder that cannot be reached MLflow lists no files, and only refuses to write them.
        for own, draw in lacking.items() if mend else ():
            self._try(self._put, address, own, draw)
        return bool(lacking) and not self.pictures_refused

    def _files(self, address: str) -> set[str]:
        try:
            return pictures_of(self._store, address)
        except Exception as error:
            if not is_refusal(error):
                raise
            self._refused(refusal_reason(error))
            return set()

    def _put(self, address: str, own: Sequence[str], draw: Callable[[], bytes]) -> None:
        if not self.pictures_refused and (reason := put_picture(self._store, address, own, draw)):
            self._refused(reason)

    def _refused(self, reason: str) -> None:
        """Expect no more pictures from here on."""
        self.pictures_refused = reason
        log.warning(refusal_warning(self._uri, reason))

    def _views(self, mend: bool) -> list[RunDifference]:
        last = next((event for event in reversed(self._events) if isinstance(event, SavedViews)), None)
        if last is None or not self._with_views:
            return []
        where = (self._experiment_id, self._sweep, last.views, last.sentence)
        count = self._retry(saved_views.lacking, self._store, *where)
        if count and mend:
            self._try(saved_views.save, self._store, self._uri, *where)
        return (
            [RunDifference("saved views", f"{count} of the experiment's tags are missing or differ")] if count else []
        )

    def _runs(self, mend: bool) -> tuple[dict[Key, Any], list[RunDifference]]:
        """Return MLflow's runs by key, each once: of two runs with one key the one with more points counts."""
        runs: dict[Key, Any] = {}
        differences = []
        for run in self._retry(_all_runs, self._store, self._experiment_id, self._sweep):
            key = key_of(run.data.tags)
            if key is None:
                continue
            if key in runs:
                differences.append(RunDifference(run.info.run_name, "the run exists twice"))
                fewer, runs[key] = sorted((run, runs[key]), key=_fullness)
                if mend:
                    self._try(self._store.delete_run, fewer.info.run_id)
            else:
                runs[key] = run
        return runs, differences

    def _values(self, part: dict[Key, ExpectedRun], present: dict[Key, Any]) -> dict[Key, dict[str, list[Point]]]:
        """Read every point of the metrics that these runs should have, by run and metric."""
        of: dict[str, list[Key]] = {}
        for key in present:
            for metric in part[key].metrics:
                of.setdefault(metric, []).append(key)
        values: dict[Key, dict[str, list[Point]]] = {}
        for metric, keys in of.items():
            ids = {present[key].info.run_id: key for key in keys}
            for run_id, points in self._retry(histories, self._store, list(ids), metric).items():
                values.setdefault(ids[run_id], {})[metric] = points
        return values

    def _mend(self, run_id: str, expected: ExpectedRun, gap: _Gap) -> None:
        from mlflow.entities import Metric, Param, RunStatus, RunTag

        if gap.wrong:
            self._try(self._store.delete_run, run_id)
            return
        metrics = [
            Metric(name, value, at, step) for name, step in gap.points for value, at in (expected.metrics[name][step],)
        ]
        params = [Param(name, expected.params[name]) for name in gap.params]
        tags = [RunTag(name, value) for name, value in gap.tags.items()]
        if metrics or params or tags:
            some_metrics, some_params = _pieces(metrics, METRICS_PER_REQUEST), _pieces(params, PARAMS_PER_REQUEST)
            for number in range(max(len(some_metrics), len(some_params), 1)):
                these = (some_metrics[number : number + 1] or [[]])[0], (some_params[number : number + 1] or [[]])[0]
                self._try(self._store.log_batch, run_id, *these, tags if number == 0 else [])
        if gap.datasets:
            self._try(self._store.log_inputs, run_id, expected.datasets)
        if not gap.ended:
            status = RunStatus.from_string(expected.status)
            self._try(self._store.update_run_info, run_id, status, expected.end_ms, None)

    def _try(self, request: Callable[..., object], *args: Any) -> None:
        """Send a writing request. Its effect is read back later, so a refusal is no error here."""
        try:
            self._retry(request, *args)
        except (TrackingError, LeaseError):
            raise
        except Exception:
            return

    def _retry(self, request: Callable[..., T], *args: Any) -> T:
        """Repeat a request until the server responds; raise MLflow's repeated error, or TrackingError if it stays unreachable."""
        refused, pause, deadline = 0, FIRST_PAUSE_SECONDS, time.monotonic() + self._patience
        while True:
            self._may_send()
            try:
                return request(*args)
            except LeaseError:
                raise
            except Exception as error:
                refused += is_permanent(error)
                if refused >= TRIES:
                    raise
                if not is_permanent(error) and time.monotonic() > deadline:
                    raise TrackingError(advice(self._uri, error)) from None
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


def missing(tracker: Tracker, state: SweepState) -> int:
    """Count and report the epochs and ends of runs that MLflow acknowledged but lacks.

    It only compares the numbers of the epochs: one search and a request per 100 runs. It never raises, since the sweep is
    over.
    """
    where = f"MLflow at {redact(tracker.uri)}"
    try:
        assert tracker.experiment_id is not None
        store = open_store(tracker.uri, WAITED_FOR_SECONDS)
        runs = {key_of(run.data.tags): run for run in runs_of(store, tracker.experiment_id, tracker.sweep)}
        cells = {("fold", c, str(seed), str(fold)): set(epochs) for (c, seed, fold), epochs in state.epochs.items()}
        ids = {runs[key].info.run_id: key for key in cells if key in runs}
        points = histories(store, list(ids), _EVERY_EPOCH)
    except Exception as error:
        what = redact(" ".join(str(error).split()))[:300]
        log.warning(f"{where} can't be checked ({what}); `leebert-tune rebuild-mlflow` compares and completes it")
        return 0
    present = {ids[run]: {step for step, _ in series} for run, series in points.items()}
    count: int = sum(len(epochs - present.get(key, set())) for key, epochs in cells.items())
    count += sum(run.info.status == "RUNNING" for key, run in runs.items() if key is not None)
    if count:
        log.warning(f"{where} lacks {count} epochs or ends of runs, although it acknowledged all of them")
    return count


def _fullness(run: Any) -> tuple[int, int]:
    steps = latest_steps(run)
    return len(steps), sum(steps.values())


def _gap(expected: ExpectedRun, present: Any, values: dict[str, list[Point]], parent: str | None) -> _Gap:
    gap = _Gap()
    for metric, expected_points in expected.metrics.items():
        points = values.get(metric, [])
        if any(step not in expected_points or not _equal(value, expected_points[step][0]) for step, value in points):
            gap.wrong.append(metric)
        steps = {step for step, _ in points}
        gap.points += [(metric, step) for step in expected_points if step not in steps]
    extra = [metric for metric in latest_steps(present) if metric not in expected.metrics]
    gap.wrong += [metric for metric in extra if _is_expected(metric, expected)]
    for name, value in expected.params.items():
        if name not in present.data.params:
            gap.params.append(name)
        elif present.data.params[name] != value and expected.key[0] != "sweep":  # the sweep's run has a report's files
            gap.wrong.append(f"parameter {name}")
    tags = {**expected.tags, **({"mlflow.parentRunId": parent} if parent else {})}
    for name, value in tags.items():
        old = present.data.tags.get(name)
        if old != value and (old is None or name not in _USERS or old in expected.rewritten.get(name, ())):
            gap.tags[name] = value
    inputs = present.inputs.dataset_inputs if present.inputs else []
    logged = {(one.dataset.name, one.dataset.digest) for one in inputs}
    gap.datasets = any((one.dataset.name, one.dataset.digest) not in logged for one in expected.datasets)
    gap.ended = present.info.status == expected.status and (
        expected.key[0] == "sweep" or expected.end_ms is None or present.info.end_time == expected.end_ms
    )
    return gap


def _equal(value: float, expected: float) -> bool:
    return math.isclose(value, expected, rel_tol=_TOLERANCE, abs_tol=1e-300)


def _is_expected(metric: str, run: ExpectedRun) -> bool:
    line = names.find("metric", metric)
    return line is not None and run.key[0] in line.runs


def _pieces(values: Sequence[T], most: int) -> list[Sequence[T]]:
    return [values[start : start + most] for start in range(0, len(values), most)]


def _all_runs(store: Any, experiment_id: str, sweep: str) -> list[Any]:
    return list(runs_of(store, experiment_id, sweep))


def _in_words(gap: _Gap, expected: ExpectedRun, present: Any) -> str:
    """Return a gap in words."""
    parts = []
    if gap.wrong:
        parts.append(f"other values of {_listed(gap.wrong)}")
    if gap.points and expected.key[0] == "fold":
        steps = sorted({step for _, step in gap.points})
        parts.append(f"no values of {_listed({metric: None for metric, _ in gap.points})} at epoch {_listed(steps)}")
    elif gap.points:
        parts.append(f"no values of {_listed({metric: None for metric, _ in gap.points})}")
    if gap.params:
        parts.append(f"no parameter {_listed(gap.params)}")
    if gap.tags:
        parts.append(f"tag {_listed(gap.tags)} is missing or differs")
    if gap.datasets:
        parts.append("no dataset")
    if gap.pictures:
        parts.append("not all pictures")
    if not gap.ended:
        parts.append(
            f"it is {present.info.status}, not {expected.status}"
            if present.info.status != expected.status
            else "ended at another time"
        )
    return "; ".join(parts)


def _listed(values: Iterable[object], most: int = 3) -> str:
    texts = [str(value) for value in values]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")
