"""`leebert-tune compare`: the paired comparison of `tune.compare` on one or several sweeps, also at equal speed-ups."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leebert.errors import ConfigError
from tune.compare import Comparison, compare
from tune.folder import SweepFolder
from tune.ledger import State
from tune.overview import spec_of
from tune.stats import sign_flip
from tune.tradeoff import CellKey, Objective, Tradeoff, curves


@dataclasses.dataclass(frozen=True)
class OnSweep:
    """A minus B on one sweep: by the mean over exits, and by the score at each speed-up."""

    sweep: str
    task: str
    running: bool
    scores: Comparison
    at_speed_ups: tuple[tuple[Objective, Comparison], ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, scores as fractions."""
        return {
            "sweep": self.sweep,
            "task": self.task,
            "running": self.running,
            **self.scores.as_dict(),
            "at_speed_ups": [
                {"speed_up": objective.speed_up, "rule": objective.rule, **comparison.as_dict()}
                for objective, comparison in self.at_speed_ups
            ],
        }


@dataclasses.dataclass(frozen=True)
class Across:
    """One number per sweep, the mean of its lines' differences: their mean, and the sign-flip p over sweeps (exact)."""

    differences: Mapping[str, float]
    mean: float
    p: float

    def __str__(self) -> str:
        ahead = sum(d > 0 for d in self.differences.values())
        return (
            f"across {len(self.differences)} sweeps: {100 * self.mean:+.2f} points on average, ahead on {ahead}; "
            f"sign-flip p {self.p:.3f} over sweeps"
        )


def compare_sweep(
    folder: SweepFolder,
    a: str,
    b: str,
    *,
    option: str = "algorithm",
    where: Mapping[str, Any] | None = None,
    objectives: Sequence[Objective] = (),
    state: State | None = None,
    replayed: Mapping[CellKey, Tradeoff] | None = None,
) -> OnSweep:
    """A minus B on what a sweep holds so far. `objectives` are the speed-ups at which to compare as well, under one rule.

    `replayed` are that rule's curves, where they are known already.
    """
    spec, running = spec_of(folder), folder.driver() is not None
    state = state or folder.ledger.read(epochs=False)
    options: dict[str, Any] = {"option": option, "where": where, "folds": spec.folds}
    if spec.folds == 1:
        options["test_train_ratio"] = folder.manifest["test_train_ratio"]
    scores = compare(state.history(), a, b, **options)
    if objectives and replayed is None:
        replayed = curves(folder.path, _of_sides(state, scores), folder.manifest["metric"], objectives[0].rule)
    there = []
    for objective in objectives:
        history = objective.rescored(state.history(), replayed or {})
        there.append((objective, compare(history, scores.a, scores.b, **options)))
    return OnSweep(folder.name, spec.task_name, running, scores, tuple(there))


def _of_sides(state: State, comparison: Comparison) -> dict[CellKey, Any]:
    """The ends of cells whose configuration stands on one of the two sides."""
    wanted = {comparison.a, comparison.b}
    sides = {c.id for c in state.history() if c.values.get(comparison.option) in wanted}
    return {key: record for key, record in state.cells.items() if key[0] in sides}


def across(found: Sequence[OnSweep]) -> Across | None:
    """What several sweeps say together; None for one. ConfigError where one is named twice."""
    if len(found) < 2:
        return None
    names = [one.sweep for one in found]
    if len(set(names)) < len(names):
        raise ConfigError("a sweep is named twice: it would count twice")
    differences = {
        one.sweep: float(np.mean([line.difference.mean for line in one.scores.lines])) for one in found
    }  # fmt: skip
    values = list(differences.values())
    return Across(differences, float(np.mean(values)), sign_flip(values))


def print_comparisons(found: Sequence[OnSweep]) -> None:
    """Tables and sentences on stdout."""
    from rich.console import Console

    from tune.compare import render

    console = Console()
    for one in found:
        if len(found) > 1:
            console.print(f"{one.sweep} ({one.task})", style="bold", highlight=False)
        console.print(render(one.scores))
        for objective, comparison in one.at_speed_ups:
            console.print(f"{objective}, from the held-out logits:", highlight=False)
            console.print(render(comparison))
        if one.running:
            print(f"{one.sweep} is still running: this is what is there")
    if (together := across(found)) is not None:
        print(together)
