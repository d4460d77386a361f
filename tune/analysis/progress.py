"""How far a sweep is: runs, what is training, the best configuration so far, and the remaining time; from the ledger alone."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from leebert.errors import SweepError
from leebert.majority import AgainstMajority, margin_in_words
from leebert.methods import most_epochs
from tune.analysis.labels import searched_name
from tune.analysis.learned import of_cells, of_configuration, ratio_of
from tune.space import SweepSpec
from tune.store.history import Configuration
from tune.store.ledger import SweepState


@dataclasses.dataclass(frozen=True)
class RunningConfiguration:
    """A configuration that is training, and its present run.

    Attributes:
        index: Its number in the sweep.
        name: Its name, by the options that the sweep searches.
        run: The number of its present run, from 1.
        runs: How many runs it has in all.
        seed: Seed of the present run.
        fold: Validation fold of the present run, from 0.
        epochs: Finished epochs of the run.
        most_epochs: The most epochs that it can have.
        score: Its last epoch's validation score, a fraction; None before the first.
        seconds: Since the run began; None if unknown.
        seconds_left: Estimate of its remaining seconds; None before the first epoch.
        queued: Whether it waits for resources.
    """

    index: int
    name: str
    run: int
    runs: int
    seed: int
    fold: int
    epochs: int
    most_epochs: int
    score: float | None
    seconds: float | None
    seconds_left: float | None
    queued: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class BestSoFar:
    """The best configuration so far.

    Attributes:
        name: Its name, by the options that the sweep searches.
        score: Its mean validation score (mean over exits), a fraction.
        runs: Its finished runs.
        of_runs: How many runs it has in all.
        margin: Its margin over the majority class, in words; empty if unknown.
    """

    name: str
    score: float
    runs: int
    of_runs: int
    margin: str


@dataclasses.dataclass(frozen=True)
class SweepProgress:
    """How far a sweep is.

    Attributes:
        name: The sweep's name and task.
        done: Finished runs.
        planned: Runs that are planned, without those of pruned and failed configurations; None if unbounded.
        counts: Configurations by state.
        running: What is training or queued, in the order of the sweep.
        best: The best configuration so far; None before the first finished run.
        seconds: Since the session began; None without a driver.
        seconds_left: Estimate of the remaining seconds; None if unknown.
        stopping: Why the sweep is stopping; empty if it is not.
    """

    name: str
    done: int
    planned: int | None
    counts: Mapping[str, int]
    running: tuple[RunningConfiguration, ...]
    best: BestSoFar | None
    seconds: float | None
    seconds_left: float | None
    stopping: str = ""

    def later(self, seconds: float) -> SweepProgress:
        """Return it as it is some seconds later, if nothing ends meanwhile."""
        running = tuple(
            dataclasses.replace(
                one, seconds=_plus(one.seconds, seconds), seconds_left=_plus(one.seconds_left, -seconds)
            )
            for one in self.running
        )
        elapsed, remaining = _plus(self.seconds, seconds), _plus(self.seconds_left, -seconds)
        return dataclasses.replace(self, running=running, seconds=elapsed, seconds_left=remaining)


@dataclasses.dataclass(frozen=True)
class Active:
    """What the driver runs.

    Attributes:
        running: Ids of the configurations that train.
        queued: Ids of those that wait for resources.
        started: When the driver's session began, in seconds since 1970; None if it is still preparing.
    """

    running: Collection[str] = ()
    queued: Collection[str] = ()
    started: float | None = None


def _plus(value: float | None, seconds: float) -> float | None:
    return None if value is None else max(0.0, value + seconds)


def searched(spec: SweepSpec) -> list[str]:
    """Return the options whose values differ between a sweep's configurations."""
    several = [option for option, values in spec.space.items() if len(values.listed() or (0, 0)) > 1]
    return [*(["algorithm"] if len(spec.algorithms) > 1 else []), *several]


def progress_of(
    name: str,
    spec: SweepSpec,
    manifest: Mapping[str, Any],
    state: SweepState,
    active: Active,
    now: float,
    stopping: str = "",
    folder: Path | None = None,
) -> SweepProgress:
    """Summarise a sweep.

    Args:
        name: The sweep's name.
        spec: Its space.
        manifest: Its manifest (`test_train_ratio`).
        state: What its ledger holds.
        active: What its driver runs; nothing without a driver.
        now: The time, in seconds since 1970.
        stopping: Why it is stopping.
        folder: The sweep's folder, to compute margins that an older ledger lacks from its logits; None: such margins
            are unknown.

    Returns:
        The summary.
    """
    history, cells = state.history(), spec.cells()
    options = searched(spec)
    lost = sum(
        len(cells) - sum(k.state != "running" for k in c.cells) for c in history if c.state in ("pruned", "failed")
    )
    planned = None if spec.planned is None else max(len(state.cells), spec.planned * len(cells) - lost)
    running = tuple(
        _running(c, spec, state, options, now, queued=c.id in active.queued)
        for c in history
        if c.state == "running" and (c.id in active.running or c.id in active.queued)
    )
    counts = {word: sum(c.state == word for c in history) for word in ("complete", "running", "pruned", "failed")}
    counts["running"] = sum(not one.queued for one in running)
    counts["queued"] = len(running) - counts["running"]
    return SweepProgress(
        name=f"{name} ({spec.task_name})",
        done=len(state.cells),
        planned=planned,
        counts={word: n for word, n in counts.items() if n},
        running=running,
        best=_best(spec, manifest, state, options, folder),
        seconds=None if active.started is None else max(0.0, now - active.started),
        seconds_left=_remaining(spec, state, active, running, planned, now),
        stopping=stopping,
    )


def _running(
    configuration: Configuration, spec: SweepSpec, state: SweepState, options: Sequence[str], now: float, queued: bool
) -> RunningConfiguration:
    """Describe the present run of a configuration: the first that has not ended."""
    cells, config = spec.cells(), configuration.id
    ended = {(cell.seed, cell.fold) for cell in configuration.cells if cell.state != "running"}
    number, (seed, fold) = next(
        ((i, cell) for i, cell in enumerate(cells, 1) if cell not in ended), (len(cells), cells[-1])
    )
    present = next((cell for cell in configuration.cells if (cell.seed, cell.fold) == (seed, fold)), None)
    most = most_epochs(spec.train_config(configuration.values))
    epochs = len(state.epochs.get((config, seed, fold), ()))
    began = max(state.granted.get(config, 0.0), *(r["time"] for r in state.cells_of.get(config, ())), 0.0)
    seconds = max(0.0, now - began) if began and not queued else None
    usual = _usual_epochs(state) or most
    remaining = None
    if seconds is not None and epochs and (newest := state.last_of.get(config)) and newest["time"] > began:
        since = [r for r in state.epochs[config, seed, fold].values() if r.get("time", 0.0) > began]
        per_epoch = (newest["time"] - began) / max(1, len(since))
        expected = max(1, min(most, usual) - epochs) if epochs < most else 0
        remaining = max(0.0, per_epoch * expected - (now - newest["time"]))
    score = present.epochs[-1].score if present and present.epochs else None
    return RunningConfiguration(
        state.indices[config], searched_name(configuration.values, options), number, len(cells), seed, fold, epochs, most,
        score, seconds, remaining, queued,
    )  # fmt: skip


def _usual_epochs(state: SweepState) -> int | None:
    """Return the mean number of epochs of the finished runs; None before the first."""
    counts = [r["epochs"] for r in state.cells.values() if r.get("epochs")]
    return round(sum(counts) / len(counts)) if counts else None


def _best(
    spec: SweepSpec, manifest: Mapping[str, Any], state: SweepState, options: Sequence[str], folder: Path | None
) -> BestSoFar | None:
    """Return the best completed configuration, else the best one with a finished run."""
    scored = [c for c in state.history() if c.scores and c.state in ("complete", "running")]
    candidates = [c for c in scored if c.state == "complete"] or scored
    if not candidates:
        return None
    top = max(candidates, key=lambda c: sum(c.scores) / len(c.scores))
    records = [r for r in state.cells_of.get(top.id, ()) if r.get("score") is not None]
    margin = None
    if all(r.get("majority") for r in records):  # else the logits have to be read
        by_run = {(r["seed"], r["fold"]): AgainstMajority.of(r["majority"]) for r in records}
        margin = of_cells(by_run, ratio_of(spec, manifest))
    elif folder is not None:
        with contextlib.suppress(SweepError):  # a status needs neither the metric nor the logits
            margin = of_configuration(folder, records, manifest["metric"], ratio_of(spec, manifest))
    words = "" if margin is None else margin_in_words(margin.samples.margin, margin.samples.interval)
    mean = sum(top.scores) / len(top.scores)
    return BestSoFar(searched_name(top.values, options), mean, len(top.scores), len(spec.cells()), words)


def _remaining(
    spec: SweepSpec,
    state: SweepState,
    active: Active,
    running: Sequence[RunningConfiguration],
    planned: int | None,
    now: float,
) -> float | None:
    """Estimate the remaining seconds from what this session has done so far, and from the budget."""
    if active.started is None:
        return None
    bounds = []
    elapsed = now - active.started
    usual = _usual_epochs(state)
    parts = [one.epochs / max(1, min(one.most_epochs, max(usual or one.most_epochs, one.epochs))) for one in running]
    ended = [r for r in state.cells.values() if r["time"] >= active.started]
    finished = len(ended) + sum(parts)
    if planned is not None and finished:
        bounds.append(elapsed / finished * max(0.0, planned - len(state.cells) - sum(parts)))
    budget = spec.budget
    if budget.hours:
        bounds.append(max(0.0, 3600 * budget.hours - state.elapsed - elapsed))
    if budget.fold_epochs:
        since = sum(r.get("epochs", 0) for r in ended) + sum(one.epochs for one in running)
        if since:
            bounds.append(elapsed / since * max(0, budget.fold_epochs - state.fold_epochs))
    return min(bounds, default=None)
