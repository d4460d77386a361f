"""What MLflow holds of a sweep against what it should hold, value by value; and the difference written.

An answer proves little: a proxy may say "{}" to what never reached MLflow, as MLflow does to what it has written. So
`rebuild-mlflow` reads everything back (a request for each metric and 100 runs), writes what is missing, and reads
again. What can't be mended in place is deleted (MLflow keeps a deleted run in its bin) and made anew: no point of a
metric and no parameter can be taken back. A sweep's end only asks for the numbers of the epochs, a request for 100 runs.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from leebert.errors import LeaseError, TrackingError
from tune.tracking import names, saved_views
from tune.tracking.events import SavedViews, TrackingEvent
from tune.tracking.expected import ExpectedRun, in_parts
from tune.tracking.histories import RUNS, Point, histories
from tune.tracking.runs import METRICS_PER_REQUEST, PARAMS_PER_REQUEST, Key, key_of, latest_steps, runs_of
from tune.tracking.server import WAITED_FOR_SECONDS, advice, is_permanent, open_store, redact

if TYPE_CHECKING:
    from tune.store.ledger import SweepState
    from tune.tracking.tracker import Tracker

#: How often a request is made that MLflow, or who answers in its place, calls wrong.
TRIES = 4

#: Tags that a user may change in MLflow's pages: what stands there is left alone, unless it is an older value of ours.
_USERS = frozenset({"mlflow.note.content", "mlflow.runColor", "mlflow.runName"})
#: A metric that every epoch has.
_EVERY_EPOCH = "seconds"
_TOLERANCE = 1e-9

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class RunDifference:
    """What MLflow lacks of one run, or has otherwise. absent: the run is to be created."""

    run: str
    what: str
    absent: bool = False

    def __str__(self) -> str:
        return f"{self.run}: {self.what}"


@dataclasses.dataclass
class _Gap:
    """How a run differs from what is expected of it. wrong: metrics whose points can't be right any more."""

    points: list[tuple[str, int]] = dataclasses.field(default_factory=list)  # metric, step
    params: list[str] = dataclasses.field(default_factory=list)
    tags: dict[str, str] = dataclasses.field(default_factory=dict)
    ended: bool = True
    wrong: list[str] = dataclasses.field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.points or self.params or self.tags or self.wrong or not self.ended)


class Audit:
    """Compares the runs of one sweep on one server with the sweep's events, and writes what is missing."""

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
    ) -> None:
        """`may_send` raises LeaseError once another driver has taken the sweep over; `patience` is the time in seconds
        that a server may be away in the middle; `with_views`: whether this server takes saved views at all.
        """
        self._uri, self._experiment_id, self._sweep, self._task = uri, experiment_id, sweep, task
        self._events, self._may_send, self._patience = events, may_send, patience
        self._store, self._with_views = open_store(uri), with_views

    def differences(self, *, mend: bool) -> list[RunDifference]:
        """Everything that differs; with `mend` it is written at once, except for runs that are to be created.

        Raises TrackingError if the server stays away, LeaseError if another driver has taken over.
        """
        runs, found = self._runs(mend)
        for part in in_parts(self._events, self._sweep, self._task, RUNS):
            held = {key: runs[key] for key in part if key in runs}
            values = self._values(part, held)
            for key, expected in part.items():
                if key not in held:
                    found.append(RunDifference(expected.name, "there is no such run", absent=True))
                    continue
                parent = runs[expected.parent].info.run_id if expected.parent in runs else None
                gap = _gap(expected, held[key], values.get(key, {}), parent)
                if gap:
                    found.append(RunDifference(expected.name, _said(gap, expected, held[key]), bool(gap.wrong)))
                    if mend:
                        self._mend(held[key].info.run_id, expected, gap)
        return found + self._views(mend)

    def _views(self, mend: bool) -> list[RunDifference]:
        views = next((event.views for event in reversed(self._events) if isinstance(event, SavedViews)), None)
        if views is None or not self._with_views:
            return []
        where = (self._experiment_id, self._sweep, views)
        found = self._ask(saved_views.lacking, self._store, *where)
        if found and mend:
            self._try(saved_views.save, self._store, self._uri, *where)
        return (
            [RunDifference("saved views", f"{found} of the experiment's tags are missing or others")] if found else []
        )

    def _runs(self, mend: bool) -> tuple[dict[Key, Any], list[RunDifference]]:
        """MLflow's runs by key, each once: of two runs of one key the fuller one counts."""
        runs: dict[Key, Any] = {}
        found = []
        for run in self._ask(_all_runs, self._store, self._experiment_id, self._sweep):
            key = key_of(run.data.tags)
            if key is None:
                continue
            if key in runs:
                found.append(RunDifference(run.info.run_name, "there are two of this run"))
                fewer, runs[key] = sorted((run, runs[key]), key=_fullness)
                if mend:
                    self._try(self._store.delete_run, fewer.info.run_id)
            else:
                runs[key] = run
        return runs, found

    def _values(self, part: dict[Key, ExpectedRun], held: dict[Key, Any]) -> dict[Key, dict[str, list[Point]]]:
        """Every point of the metrics that these runs should have, by run and metric."""
        of: dict[str, list[Key]] = {}
        for key in held:
            for metric in part[key].metrics:
                of.setdefault(metric, []).append(key)
        values: dict[Key, dict[str, list[Point]]] = {}
        for metric, keys in of.items():
            ids = {held[key].info.run_id: key for key in keys}
            for run_id, points in self._ask(histories, self._store, list(ids), metric).items():
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
            some, few = _pieces(metrics, METRICS_PER_REQUEST), _pieces(params, PARAMS_PER_REQUEST)
            for number in range(max(len(some), len(few), 1)):
                these = (some[number : number + 1] or [[]])[0], (few[number : number + 1] or [[]])[0]
                self._try(self._store.log_batch, run_id, *these, tags if number == 0 else [])
        if not gap.ended:
            status = RunStatus.from_string(expected.status)
            self._try(self._store.update_run_info, run_id, status, expected.end_ms, None)

    def _try(self, request: Callable[..., object], *args: Any) -> None:
        """A request that writes: whether it was done is read back, so that a refusal is no error here."""
        try:
            self._ask(request, *args)
        except (TrackingError, LeaseError):
            raise
        except Exception:
            return

    def _ask(self, request: Callable[..., T], *args: Any) -> T:
        """Until it is answered; raises what MLflow says is wrong each time, TrackingError for a server that stays away."""
        refused, pause, given_up = 0, 0.1, time.monotonic() + self._patience
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
                if not is_permanent(error) and time.monotonic() > given_up:
                    raise TrackingError(advice(self._uri, error)) from None
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


def missing(tracker: Tracker, state: SweepState, say: Callable[[str], None]) -> int:
    """How many reports and ends of runs MLflow lacks of what it seems to have taken; says so.

    By the numbers of the cells' epochs alone: one search and a request for 100 cells. Never raises: the sweep is over.
    """
    where = f"MLflow at {redact(tracker.uri)}"
    try:
        assert tracker.experiment_id is not None
        store = open_store(tracker.uri, WAITED_FOR_SECONDS)
        runs = {key_of(run.data.tags): run for run in runs_of(store, tracker.experiment_id, tracker.sweep)}
        cells = {("fold", c, str(seed), str(fold)): set(known) for (c, seed, fold), known in state.epochs.items()}
        ids = {runs[key].info.run_id: key for key in cells if key in runs}
        points = histories(store, list(ids), _EVERY_EPOCH)
    except Exception as error:
        what = redact(" ".join(str(error).split()))[:300]
        say(f"{where} doesn't say what it holds ({what}); `leebert-tune rebuild-mlflow` compares and completes it")
        return 0
    held = {ids[run]: {step for step, _ in its} for run, its in points.items()}
    count = sum(len(known - held.get(key, set())) for key, known in cells.items())
    count += sum(run.info.status == "RUNNING" for key, run in runs.items() if key is not None)
    if count:
        say(f"{where} lacks {count} reports or ends of runs, though it seemed to take all of them")
    return count


def _fullness(run: Any) -> tuple[int, int]:
    steps = latest_steps(run)
    return len(steps), sum(steps.values())


def _gap(expected: ExpectedRun, held: Any, values: dict[str, list[Point]], parent: str | None) -> _Gap:
    gap = _Gap()
    for metric, wanted in expected.metrics.items():
        points = values.get(metric, [])
        if any(step not in wanted or not _same(value, wanted[step][0]) for step, value in points):
            gap.wrong.append(metric)
        known = {step for step, _ in points}
        gap.points += [(metric, step) for step in wanted if step not in known]
    gap.wrong += [metric for metric in latest_steps(held) if metric not in expected.metrics and _ours(metric, expected)]
    for name, value in expected.params.items():
        if name not in held.data.params:
            gap.params.append(name)
        elif held.data.params[name] != value and expected.key[0] != "sweep":  # whose run has a report's files
            gap.wrong.append(f"parameter {name}")
    tags = {**expected.tags, **({"mlflow.parentRunId": parent} if parent else {})}
    for name, value in tags.items():
        old = held.data.tags.get(name)
        if old != value and (old is None or name not in _USERS or old in expected.rewritten.get(name, ())):
            gap.tags[name] = value
    gap.ended = held.info.status == expected.status and (
        expected.key[0] == "sweep" or expected.end_ms is None or held.info.end_time == expected.end_ms
    )
    return gap


def _same(value: float, wanted: float) -> bool:
    return math.isclose(value, wanted, rel_tol=_TOLERANCE, abs_tol=1e-300)


def _ours(metric: str, run: ExpectedRun) -> bool:
    line = names.find("metric", metric)
    return line is not None and run.key[0] in line.runs


def _pieces(values: Sequence[T], most: int) -> list[Sequence[T]]:
    return [values[start : start + most] for start in range(0, len(values), most)]


def _all_runs(store: Any, experiment_id: str, sweep: str) -> list[Any]:
    return list(runs_of(store, experiment_id, sweep))


def _said(gap: _Gap, expected: ExpectedRun, held: Any) -> str:
    """A gap in words."""
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
        parts.append(f"tag {_listed(gap.tags)} is missing or another")
    if not gap.ended:
        parts.append(
            f"it is {held.info.status}, not {expected.status}"
            if held.info.status != expected.status
            else "ended at another time"
        )
    return "; ".join(parts)


def _listed(values: Iterable[object], most: int = 3) -> str:
    found = [str(value) for value in values]
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")
