"""`leebert-tune compare`: the paired comparison of `tune.analysis.compare` on one or several sweeps, also at equal speed-ups."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leebert.errors import ConfigError, LeebertError
from tune.analysis.compare import Comparison, compare, jsonable
from tune.analysis.compare_text import render
from tune.analysis.settings import uneven_settings
from tune.analysis.stats import Interval, corrected_t, sign_flip
from tune.analysis.still_weights import StillPairs, still_pairs
from tune.analysis.sweeps import SweepPool, load_pools
from tune.analysis.tradeoff import RankingObjective, Tradeoff, curves
from tune.analysis.wording import points, side_name, span, verdict
from tune.store.curves import FEWEST, CellCurves, layers_needed
from tune.store.folder import SweepFolder
from tune.store.history import CellKey
from tune.store.ranking import best, complete

#: A comparison at a speed-up, or why there is none.
AtSpeedUp = tuple[RankingObjective, Comparison | str]


@dataclasses.dataclass(frozen=True)
class OnSweep:
    """A minus B on one sweep: by the mean over exits, and by the score at each speed-up.

    layers: the fewest that the best configuration of each side needs (:func:`tune.store.curves.layers_needed`), by side.
    no_layers: why a side has none, in words; empty where nothing is missing.
    still: for each line in which loss weights could make a difference, in how many pairs they did not.
    """

    pool: SweepPool
    scores: Comparison
    at_speed_ups: tuple[AtSpeedUp, ...]
    layers: Mapping[str, float]
    no_layers: str = ""
    still: tuple[StillPairs, ...] = ()

    @property
    def sweep(self) -> str:
        return self.pool.name

    @property
    def task(self) -> str:
        return self.pool.spec.task_name

    @property
    def size(self) -> int:
        """How many tests it holds, exits apart."""
        return self.scores.size + sum(c.size for _, c in self.at_speed_ups if isinstance(c, Comparison))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, scores as fractions."""
        return {
            "sweep": self.sweep,
            "task": self.task,
            "running": self.pool.running,
            **self.scores.as_dict(),
            "layers": dict(self.layers),
            **({"no_layers": self.no_layers} if self.no_layers else {}),
            "at_speed_ups": [
                {
                    "speed_up": objective.speed_up,
                    "criterion": objective.criterion,
                    **({} if objective.patience is None else {"patience": objective.patience}),
                    **(found.as_dict() if isinstance(found, Comparison) else {"missing": found}),
                }
                for objective, found in self.at_speed_ups
            ],
            "still_weights": [dataclasses.asdict(one) for one in self.still],
        }


def compare_sweeps(
    folders: Sequence[SweepFolder],
    a: str,
    b: str,
    *,
    option: str = "algorithm",
    where: Mapping[str, Any] | None = None,
    objectives: Sequence[RankingObjective] = (),
    epochs: bool = False,
) -> list[OnSweep]:
    """A minus B on each of these sweeps; see :func:`tune.analysis.sweeps.load_pools` and :func:`compare_pool`."""
    told = []
    for pool in (found := load_pools(folders, option, a, b, epochs=epochs)):
        try:
            told.append(compare_pool(pool, a, b, option=option, where=where, objectives=objectives))
        except LeebertError as error:
            raise type(error)(f"{pool.name}: {error}" if len(found) > 1 else str(error)) from None
    return told


def compare_pool(
    pool: SweepPool,
    a: str,
    b: str,
    *,
    option: str = "algorithm",
    where: Mapping[str, Any] | None = None,
    objectives: Sequence[RankingObjective] = (),
    replayed: Mapping[CellKey, Tradeoff] | None = None,
) -> OnSweep:
    """A minus B on what is there so far. `objectives` are the speed-ups at which to compare as well, under one exit criterion.

    `replayed` are that criterion's curves, where they are known already. What can't be said at a speed-up is no error.
    """
    history, spec = pool.state.history(), pool.spec
    options: dict[str, Any] = {
        "option": option, "where": where, "folds": spec.folds, "test_train_ratio": pool.test_train_ratio,
        "cells": spec.cells(), "planned": pool.planned,
    }  # fmt: skip
    try:
        scores = compare(history, a, b, **options)
    except ConfigError as error:
        raise ConfigError(f"{error}; {pool.unfinished}" if pool.unfinished else str(error)) from None
    values = {c.id: c.values for c in history}
    found = [still_pairs(line, option, pool.state.cells, values, spec) for line in scores.lines]
    still = tuple(one for one in found if one is not None)
    warnings = [said for one in still if (said := one.in_words())]
    paired = {id for side in scores.sides for id in side}
    mixed = uneven_settings(pool.name, pool.state, paired)
    scores = dataclasses.replace(scores, warnings=(*scores.warnings, *mixed, *warnings))
    there = _at_speed_ups(pool, scores, objectives, options, replayed) if objectives else []
    return OnSweep(pool, scores, tuple(there), *_layers(pool, scores), still)


def _layers(pool: SweepPool, scores: Comparison) -> tuple[dict[str, float], str]:
    """The layers that the best of each side needs, and why one is missing: what learned nothing needs none."""
    history, found = pool.state.history(), {}
    missing: list[str] = []
    for value, ids in zip((scores.a, scores.b), scores.sides, strict=True):
        side, name = complete(tuple(c for c in history if c.id in ids)), side_name(scores.option, value)
        learned = tuple(c for c in side if c.id not in pool.margins or pool.margins[c.id].learned)
        if learned:
            top = best(learned)
            ends = [pool.state.cells[top.id, cell.seed, cell.fold] for cell in top.cells]
            needed = layers_needed(ends, CellCurves(pool.homes[top.id], missing.append))
            if needed is not None:
                found[name] = needed
        elif side:
            missing.append(f"no complete configuration of {name} is distinguishable from the majority class")
    return found, "; ".join(dict.fromkeys(missing))


def _at_speed_ups(
    pool: SweepPool,
    scores: Comparison,
    objectives: Sequence[RankingObjective],
    options: Mapping[str, Any],
    replayed: Mapping[CellKey, Tradeoff] | None,
) -> list[AtSpeedUp]:
    """The same of the configurations that count: the paired ones, and the complete ones, which tuning chooses from."""
    history = pool.state.history()
    ids = {id for line in scores.lines for pair in line.paired for id in pair}
    for side in scores.sides:
        ids |= {c.id for c in complete(tuple(c for c in history if c.id in side))}
    try:
        known = replayed or _curves(pool, ids, objectives[0])
    except LeebertError as error:
        return [(objective, str(error)) for objective in objectives]
    found = {key: curve for key, curve in known.items() if key[0] in ids}
    there: list[AtSpeedUp] = []
    for objective in objectives:
        try:
            there.append((objective, compare(objective.rescored(history, found), scores.a, scores.b, **options)))
        except LeebertError as error:
            there.append((objective, str(error)))
    return there


def _curves(pool: SweepPool, ids: set[str], objective: RankingObjective) -> dict[CellKey, Tradeoff]:
    """The curves of these configurations' finished cells, wherever their logits lie."""
    found: dict[CellKey, Tradeoff] = {}
    for folder in (sweep.folder for sweep in pool.sweeps):
        mine = {k: r for k, r in pool.state.cells.items() if k[0] in ids and pool.homes[k[0]] == folder.path}
        found |= curves(folder.path, mine, pool.manifest["metric"], objective.criterion, objective.patience)
    return found


# Several sweeps together


@dataclasses.dataclass(frozen=True)
class Across:
    """One number per task: the mean over its sweeps of the mean over their lines. Their mean, with a t over tasks.

    `what` says of which comparison; `p` of the sign-flip test is exact over tasks, which are no samples of one another.
    """

    what: str
    sweeps: Mapping[str, float]
    tasks: Mapping[str, float]
    difference: Interval
    sign_flip_p: float
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, scores as fractions."""
        plain: dict[str, Any] = jsonable(dataclasses.asdict(self))
        return plain


def across(found: Sequence[OnSweep]) -> list[Across]:
    """What several sweeps say together: over all lines, tuned, and at each speed-up that all of them have."""
    if len(found) < 2:
        return []
    scores = found[0].scores
    names = (side_name(scores.option, scores.a), side_name(scores.option, scores.b))
    told = [_across(str(RankingObjective()), found, [one.scores for one in found], names)]
    if all(one.scores.tuned for one in found):
        told.append(_across("tuned", found, [one.scores for one in found], names, tuned=True))
    for i, (objective, _) in enumerate(found[0].at_speed_ups):
        there = [c for one in found if isinstance(c := one.at_speed_ups[i][1], Comparison)]
        if len(there) == len(found):
            told.append(_across(str(objective), found, there, names))
    return told


def _across(
    what: str, found: Sequence[OnSweep], there: Sequence[Comparison], names: tuple[str, str], *, tuned: bool = False
) -> Across:
    sweeps = {}
    by_task: dict[str, list[float]] = {}
    for one, c in zip(found, there, strict=True):
        of_tuned = [c.tuned.difference.mean] if tuned and c.tuned is not None else []
        sweeps[one.sweep] = float(np.mean(of_tuned or [line.difference.mean for line in c.lines]))
        by_task.setdefault(one.task, []).append(sweeps[one.sweep])
    tasks = {task: float(np.mean(differences)) for task, differences in by_task.items()}
    values = list(tasks.values())
    interval = corrected_t(values, 0.0, there[0].confidence)
    a, b = (f"tuned {name}" if tuned else name for name in names)
    return Across(what, sweeps, tasks, interval, sign_flip(values), verdict(a, b, interval, unit="task"))


def across_rows(told: Sequence[Across]) -> list[tuple[str, ...]]:
    """The table over tasks as texts, the header first."""
    table: list[tuple[str, ...]] = [
        ("over tasks", *told[0].tasks, "mean", f"{100 * told[0].difference.confidence:g} % interval", "p", "flip p")
    ]
    for one in told:
        p = "-" if not one.difference.known else f"{one.difference.p:.3f}"
        each = (points(d) for d in one.tasks.values())
        numbers = (points(one.difference.mean), span(one.difference), p, f"{one.sign_flip_p:.3f}")
        table.append((one.what, *each, *numbers))
    return table


def across_sentences(told: Sequence[Across]) -> list[str]:
    """The verdicts over tasks, and what limits them."""
    tasks, sweeps = len(told[0].tasks), len(told[0].sweeps)
    said = [f"{one.what}: {one.verdict}" for one in told]
    if sweeps > tasks:
        said.append(
            f"note: {sweeps} sweeps of {tasks} task{'s' if tasks > 1 else ''}; those of one task are averaged first"
        )
    if tasks < 6:
        said.append(
            f"note: with {tasks} task{'s' if tasks > 1 else ''} the sign-flip p can't be below {2 / 2**tasks:g}"
        )
    return said


def print_comparisons(found: Sequence[OnSweep]) -> None:
    """Tables and sentences on stdout."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for one in found:
        if len(found) > 1:
            console.print(f"{one.sweep} ({one.task})", style="bold", highlight=False)
        console.print(render(one.scores))
        if one.layers:
            each = ", ".join(f"{name} {layers:.2f}" for name, layers in one.layers.items())
            console.print(f"layers of the best configuration of each ({FEWEST}): {each}", highlight=False)
        if one.no_layers:
            console.print(Text(f"no layers: {one.no_layers}"))
        for objective, there in one.at_speed_ups:
            if isinstance(there, str):
                console.print(Text(f"not at speed-up {objective.speed_up}: {there}"))
                continue
            console.print(f"{objective}, from the held-out logits:", highlight=False)
            console.print(render(there))
        if one.pool.running:
            print(f"{one.sweep} is still running: this is what is there")
    if not (told := across(found)):
        return
    header, *body = across_rows(told)
    table = Table(box=SIMPLE_HEAD, caption=Text("\n".join(across_sentences(told))), caption_justify="left")
    for name in header:
        table.add_column(Text(name))
    for row in body:
        table.add_row(*map(Text, row))
    console.print(table)
