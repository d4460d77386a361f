"""What a sweep looks like from outside: a status, a list, a table of configurations."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from leebert.errors import LeebertError
from tune.analysis.learned import ConfigurationMargin, conclusion, margins_of
from tune.space import SweepSpec
from tune.store.folder import SweepFolder, spec_of
from tune.store.history import History, Placement, describe
from tune.store.ledger import SweepState
from tune.store.ranking import complete, ranking, score

#: What to say of a sweep that has not come to its end, by `SweepState.status`.
UNFINISHED = {
    "running": "is still running", "stopped": "was stopped", "failed": "has failed", "died": "has died",
}  # fmt: skip


def state_word(state: str, driven: bool) -> str:
    """A configuration's state in words: nothing is running where no driver is at work."""
    return "unfinished" if state == "running" and not driven else state


def status_of(folder: SweepFolder) -> dict[str, Any]:
    """Done, running, failed and time left, from the ledger and the driver's beat."""
    state, alive = folder.ledger.read(), folder.driver()
    spec = spec_of(folder)
    history = state.history()
    per_config = len(spec.cells())
    done = len(state.cells)
    given_up = sum(
        per_config - sum(k.state != "running" for k in c.cells) for c in history if c.state in ("pruned", "failed")
    )
    planned = spec.planned * per_config if spec.planned else None
    left = None if planned is None else max(0, planned - done - given_up)
    told: dict[str, Any] = {
        "sweep": folder.name,
        "task": spec.task_name,
        "state": state.status(bool(alive)),
        "note": (state.end or {}).get("note", ""),
        "configurations": counted(history, alive is not None),
        "planned_configurations": spec.planned,
        "cells_done": done,
        "cells_left": left,
        "fold_epochs": state.fold_epochs,
        "hours_left": None,
        "running": [],
        "missing": list(state.missing),
    }
    if alive:
        told["running"] = [describe(state.configs[c].values) for c in alive.get("running", []) if c in state.configs]
        started = alive.get("started", math.inf)  # which a driver that only prepares its work does not say yet
        since = [r for r in state.cells.values() if r["time"] >= started]
        if since and left:
            told["hours_left"] = (time.time() - started) / len(since) * left / 3600
    return told


def counted(history: History, driven: bool) -> dict[str, int]:
    """How many configurations are in each state, by its word."""
    names = ("complete", "running", "pruned", "failed")
    return {state_word(name, driven): sum(c.state == name for c in history) for name in names}


def status_or_error(folder: SweepFolder) -> dict[str, Any]:
    """The status, or what keeps it from being read: one damaged sweep is not to hide the others."""
    try:
        return status_of(folder)
    except LeebertError as error:
        return {"sweep": folder.name, "error": str(error)}


def summary(folder: SweepFolder, spec: SweepSpec, state: SweepState) -> dict[str, Any]:
    """Every configuration with its score, best first, and beside the majority class; JSON-ready.

    Those that are not distinguishable from the majority class come after the complete ones that are. `verdict` says what the complete ones are against the majority class, all together.
    """
    done = [c.id for c in state.history() if c.state == "complete"]
    ends = {config: state.cells_of.get(config, ()) for config in done}
    margins = margins_of(ends, dict.fromkeys(done, folder.path), spec, folder.manifest)
    ranked = [r.configuration.id for r in ranking(state.history())]
    ranked.sort(key=lambda config: config in margins and not margins[config].learned)  # stable: else by score
    order = {config: i for i, config in enumerate(ranked)}
    driven = folder.driver() is not None
    rows = []
    for c in sorted(state.history(), key=lambda c: (order.get(c.id, len(order)), state.indices[c.id])):
        mean, std = score(c)
        rows.append(
            {
                "configuration": c.id,
                "values": dict(c.values),
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
    """Without the configurations that are not distinguishable from the majority class; all where every complete one is so."""
    kept = tuple(c for c in history if c.id not in margins or margins[c.id].learned)
    return kept if complete(kept) else history


def verdict_in_short(row: Mapping[str, Any]) -> str:
    """A row of :func:`summary` beside the majority class in a word or two; empty where it learned or nothing is known."""
    verdict = (row["majority"] or {}).get("verdict", "learned")
    return {"learned": "", "collapsed": "collapsed"}.get(verdict, "as the majority class")


def placed(state: SweepState, config: str) -> str:
    """How a configuration was run after memory ran out, in words; empty where it ran as the space says."""
    places = [Placement(**r["placement"]) for r in state.cells_of.get(config, []) if "placement" in r]
    return max(places, key=lambda p: (p.accumulate, p.alone)).described() if places else ""


def print_table(facts: dict[str, Any], most: int = 20) -> None:
    """The configurations of a sweep, best first."""
    from rich.console import Console
    from rich.table import Table

    rows = facts["configurations"]
    table = Table(title=f"{facts['sweep']}: cross-validated mean over exits, in per cent", title_justify="left")
    for name, side in (
        ("#", "right"),
        ("configuration", "left"),
        ("score", "right"),
        ("sd", "right"),
        ("cells", "right"),
        ("state", "left"),
    ):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for i, row in enumerate(rows[:most], start=1):
        points = ["" if row[k] is None else f"{100 * row[k]:.2f}" for k in ("score_mean", "score_std")]
        state = ", ".join(filter(None, (row["state"], row["placement"], verdict_in_short(row))))
        table.add_row(str(i), describe(row["values"]), *points, str(row["cells"]), state)
    Console().print(table)
    if len(rows) > most:
        print(f"and {len(rows) - most} more; results.parquet in {facts['folder']} has all")
    if facts["verdict"]:
        print(facts["verdict"])


def print_views(views: dict[str, str], note: str = "") -> None:
    """The saved views in MLflow, one line each; nothing where there are none."""
    width = max(map(len, views), default=0)
    for i, (name, address) in enumerate(views.items()):
        print(f"{'views:  ' if i == 0 else ' ' * 8}{name:{width}}  {address}")
    if note:
        print(f"{' ' * 8}{note}")


def print_status(told: dict[str, Any]) -> None:
    """One sweep's status on stdout."""
    counts = ", ".join(f"{n} {name}" for name, n in told["configurations"].items() if n) or "none started"
    of = f" of {told['planned_configurations']}" if told["planned_configurations"] else ""
    print(f"{told['sweep']} ({told['task']}): {told['state']}" + (f", {told['note']}" if told["note"] else ""))
    print(f"configurations{of}: {counts}")
    left = "" if told["cells_left"] is None else f", {told['cells_left']} left"
    print(f"cells: {told['cells_done']} done{left}; {told['fold_epochs']} fold-epochs")
    if told["hours_left"] is not None:
        print(f"about {60 * told['hours_left']:.0f} minutes left")
    for line in told["running"]:
        print(f"running: {line}")


def print_list(found: list[dict[str, Any]]) -> None:
    """One line per sweep."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in ("sweep", "task", "state", "complete", "cells", "left"):
        table.add_column(name)
    for t in found:
        if "error" in t:
            table.add_row(t["sweep"], "", f"damaged: {t['error']}", "", "", "")
            continue
        left = "" if t["cells_left"] is None else str(t["cells_left"])
        table.add_row(
            t["sweep"], t["task"], t["state"], str(t["configurations"]["complete"]), str(t["cells_done"]), left
        )
    Console().print(table)
