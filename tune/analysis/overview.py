"""A sweep at a glance: its status, the list of sweeps, the table of configurations."""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Mapping
from typing import Any

from leebert import console, live
from leebert.errors import LeebertError
from tune.analysis.labels import searched_name
from tune.analysis.learned import ConfigurationMargin, conclusion, margins_of
from tune.analysis.progress import Active, BestSoFar, RunningConfiguration, SweepProgress, progress_of, searched
from tune.analysis.progress_text import best_line, progress_lines, running_line
from tune.space import SweepSpec
from tune.store.folder import SweepFolder, spec_of
from tune.store.history import History, Placement
from tune.store.ledger import SweepState
from tune.store.ranking import completed, ranking, score

#: The words for an unfinished sweep, by `SweepState.status`.
UNFINISHED = {
    "running": "is still running", "stopped": "was stopped", "failed": "has failed", "died": "has died",
}  # fmt: skip


def state_word(state: str, driven: bool) -> str:
    """Return a configuration's state in words: without a driver, `running` becomes `unfinished`."""
    return "unfinished" if state == "running" and not driven else state


def status_of(folder: SweepFolder) -> dict[str, Any]:
    """Return counts of runs and configurations, what is training and the remaining time, from ledger and heartbeat."""
    state, alive = folder.ledger.read(), folder.driver()
    spec = spec_of(folder)
    now = time.time()
    history = state.history()
    progress = progress_of(folder.name, spec, folder.manifest, state, active_of(alive), now, folder=folder.path)
    remaining = None if progress.planned is None else progress.planned - progress.done
    status: dict[str, Any] = {
        "sweep": folder.name,
        "task": spec.task_name,
        "state": state.status(bool(alive)),
        "note": (state.end or {}).get("note", ""),
        "configurations": count_states(history, alive is not None),
        "planned_configurations": spec.planned,
        "cells_done": progress.done,
        "cells_left": remaining,
        "fold_epochs": state.fold_epochs,
        "hours_left": None,
        "running": [],
        "queued": [],
        "runs": [],
        "best": None,
        "missing": list(state.missing),
    }
    if alive:
        # The ledger is newer than the heartbeat: what has ended since is neither running nor queued.
        active = {c.id for c in history if c.state == "running"}
        for key in ("running", "queued"):  # a driver of an older version writes no queued ones
            status[key] = [
                searched_name(state.configs[c].values, searched(spec)) for c in alive.get(key, []) if c in active
            ]
        if status["queued"]:  # granted, so running in the ledger, but Ray has no resources for it yet
            status["configurations"]["running"] -= len(status["queued"])
            status["configurations"]["queued"] = len(status["queued"])
    status["runs"] = [one.as_dict() for one in progress.running]
    status["best"] = progress.best and dataclasses.asdict(progress.best)
    if progress.seconds_left is not None and remaining != 0:
        status["hours_left"] = progress.seconds_left / 3600
    return status


def active_of(alive: Mapping[str, Any] | None) -> Active:
    """Return what a driver runs by its heartbeat; None: there is no driver."""
    if alive is None:
        return Active()
    # A driver that prepares its work has not started yet; one of an older version writes no queued configurations.
    return Active(alive.get("running", ()), alive.get("queued", ()), alive.get("started"))


def watch(folder: SweepFolder, every: float = 2.0) -> None:
    """Show a sweep's progress from its ledger until no driver works on it any more; then print its status.

    Args:
        folder: The sweep's folder.
        every: Seconds between two readings.
    """
    spec, manifest = spec_of(folder), folder.manifest
    with live.display("reading the ledger") as shown:
        while (alive := folder.driver()) is not None:
            now = time.time()
            progress = progress_of(folder.name, spec, manifest, folder.ledger.read(), active_of(alive), now)
            live.phase(_idle_phase(progress))
            if shown.drawn:
                shown.body(functools.partial(_later_lines, progress, now))
            else:
                print("; ".join(line.strip() for line in progress_lines(progress, sys.maxsize)), flush=True)
            # A large ledger takes seconds to read.
            time.sleep(max(every if shown.drawn else 15 * every, 5 * (time.time() - now)))
    print_status(status_of(folder))


def _idle_phase(progress: SweepProgress) -> str:
    """Return what a driver does while it trains nothing; empty if it trains."""
    if progress.running:
        return ""
    finished = progress.planned is not None and progress.done >= progress.planned > 0
    return "all runs are complete: the driver sends results to MLflow" if finished else "the driver prepares its work"


def _later_lines(progress: SweepProgress, read: float, width: int, height: int) -> list[str]:
    return progress_lines(progress.later(time.time() - read), width, height)


def count_states(history: History, driven: bool) -> dict[str, int]:
    """Count the configurations in each state, by its word."""
    names = ("complete", "running", "pruned", "failed")
    return {state_word(name, driven): sum(c.state == name for c in history) for name in names}


def status_or_error(folder: SweepFolder) -> dict[str, Any]:
    """Return the status, or the error that prevents reading it, so that one damaged sweep does not hide the others."""
    try:
        return status_of(folder)
    except LeebertError as error:
        return {"sweep": folder.name, "error": str(error)}


def summary(folder: SweepFolder, spec: SweepSpec, state: SweepState) -> dict[str, Any]:
    """Return every configuration with its score and its margin over the majority class, best first.

    Completed configurations that are not significantly above the majority class come after those that are.

    Args:
        folder: The sweep's folder.
        spec: Its space.
        state: Its state.

    Returns:
        JSON-ready values. The key `verdict` compares all completed configurations with the majority class in a sentence.
    """
    done = [c.id for c in state.history() if c.state == "complete"]
    ends = {config: state.cells_of.get(config, ()) for config in done}
    margins = margins_of(ends, dict.fromkeys(done, folder.path), spec, folder.manifest)
    ranked = [r.configuration.id for r in ranking(state.history())]
    ranked.sort(key=lambda config: config in margins and not margins[config].learned)  # stable: else by score
    order = {config: i for i, config in enumerate(ranked)}
    driven, options = folder.driver() is not None, searched(spec)
    rows = []
    for c in sorted(state.history(), key=lambda c: (order.get(c.id, len(order)), state.indices[c.id])):
        mean, std = score(c)
        rows.append(
            {
                "configuration": c.id,
                "values": dict(c.values),
                "name": searched_name(c.values, options),
                "state": state_word(c.state, driven),
                "cells": len(c.scores),
                "score_mean": None if mean != mean else mean,
                "score_std": None if std != std else std,
                "placement": placed(state, c.id),
                "majority": margins[c.id].as_dict() if c.id in margins else None,
            }
        )
    return {
        "sweep": folder.name,
        "task": spec.task_name,
        "folder": str(folder.path),
        "configurations": rows,
        "verdict": conclusion(list(margins.values())),
    }


def without_unlearned(history: History, margins: Mapping[str, ConfigurationMargin]) -> History:
    """Drop the configurations that are not significantly above the majority class, unless no completed one is."""
    learned = tuple(c for c in history if c.id not in margins or margins[c.id].learned)
    return learned if completed(learned) else history


def majority_note(row: Mapping[str, Any]) -> str:
    """Return a note on a row of :func:`summary` that is not better than the majority class; empty for others."""
    verdict = (row["majority"] or {}).get("verdict", "learned")
    return {"learned": "", "collapsed": "collapsed"}.get(verdict, "not above the majority class")


def placed(state: SweepState, config: str) -> str:
    """Describe how a configuration ran after an out-of-memory error; empty if it ran as configured."""
    places = [Placement(**r["placement"]) for r in state.cells_of.get(config, []) if "placement" in r]
    return max(places, key=lambda p: (p.accumulate, p.alone)).described() if places else ""


def print_table(facts: dict[str, Any], most: int = 20) -> None:
    """Print the configurations of a sweep, best first."""
    from rich.console import Console

    rows = []
    for i, row in enumerate(facts["configurations"][:most], start=1):
        points = ["" if row[k] is None else f"{100 * row[k]:.2f}" for k in ("score_mean", "score_std")]
        state = ", ".join(filter(None, (row["state"], row["placement"], majority_note(row))))
        rows.append((str(i), row["name"], *points, str(row["cells"]), state))
    print(f"{facts['sweep']}: cross-validated mean over exits, in per cent")
    columns = ("#", "configuration", "score", "sd", "runs", "state")
    Console().print(console.table(columns, rows, left=(1, 5), whole=(0, 2, 3, 4), framed=False))
    if len(facts["configurations"]) > most:
        print(f"and {len(facts['configurations']) - most} more; results.parquet in {facts['folder']} has all")
    if facts["verdict"]:
        console.sentence(facts["verdict"])


def print_views(views: dict[str, str], note: str = "") -> None:
    """Print the saved views in MLflow, one line each."""
    for i, line in enumerate(console.aligned(list(views.items()))):
        print(f"{'views:  ' if i == 0 else ' ' * 8}{line}")
    if note:
        print(f"{' ' * 8}{note}")


def print_status(status: dict[str, Any]) -> None:
    """Print one sweep's status."""
    counts = ", ".join(f"{n} {name}" for name, n in status["configurations"].items() if n) or "none started"
    planned = f", of {status['planned_configurations']} planned" if status["planned_configurations"] else ""
    print(
        f"{status['sweep']} ({status['task']}): {status['state']}" + (f", {status['note']}" if status["note"] else "")
    )
    print(f"configurations: {counts}{planned}")
    remaining = "" if status["cells_left"] is None else f", {status['cells_left']} remaining"
    print(f"runs: {status['cells_done']} finished{remaining}; {status['fold_epochs']} fold-epochs")
    if status["hours_left"] is not None:
        print(f"about {live.duration(3600 * status['hours_left'])} remaining")
    for one in (RunningConfiguration(**values) for values in status["runs"]):
        console.sentence(f"{'queued' if one.queued else 'running'}: {running_line(one)}")
    if status["best"]:
        line = best_line(BestSoFar(**status["best"]))
        console.sentence(line if status["state"] == "running" else line.replace("best so far", "best", 1))


def print_list(statuses: list[dict[str, Any]]) -> None:
    """Print one line per sweep."""
    from rich.console import Console

    if not statuses:
        print("no sweeps")
        return
    sound = [_listed(status) for status in statuses if "error" not in status]
    columns = ("sweep", "task", "state", "completed", "runs", "remaining")
    widths = [max(map(len, column)) for column in zip(columns, *sound, strict=True)]
    # A name is copied into the next command, so it is never wrapped: a long one stands on a line of its own.
    room = max(len(columns[0]), min(widths[0], Console().width - sum(widths[1:]) - 2 * len(widths[1:])))
    for name, *rest in (columns, *sound) if sound else ():
        cells = "  ".join(cell.ljust(width) for cell, width in zip(rest, widths[1:], strict=True)).rstrip()
        if len(name) > room:
            print(name)
        print(f"{name if len(name) <= room else '':<{room}}  {cells}")
    for status in statuses:
        if "error" in status:
            console.sentence(f"{status['sweep']}: damaged: {status['error']}")


def _listed(status: dict[str, Any]) -> tuple[str, ...]:
    """Return the row of one sweep in the list."""
    complete, remaining = status["configurations"]["complete"], status["cells_left"]
    counts = (complete, status["cells_done"], "" if remaining is None else remaining)
    return status["sweep"], status["task"], status["state"], *map(str, counts)
