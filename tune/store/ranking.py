"""The ranking of configurations: by cross-validated mean, among those that finished every run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from leebert.errors import SweepError
from tune.store.history import Cell, ConfigState, Configuration, History, SeedFold


class Score(NamedTuple):
    """The mean over runs and their sample standard deviation (ddof = 1; NaN for fewer than two), as fractions."""

    mean: float
    std: float


class Ranked(NamedTuple):
    """A configuration with its score."""

    configuration: Configuration
    score: Score


def score(configuration: Configuration) -> Score:
    """Return the score of a configuration over its finished runs; (NaN, NaN) without any."""
    return mean_and_std(configuration.scores)


def mean_and_std(scores: Iterable[float]) -> Score:
    """Compute mean and sample standard deviation, independent of the order to the last bit."""
    values = tuple(scores)
    n = len(values)
    if not n:
        return Score(math.nan, math.nan)
    mean = math.fsum(values) / n
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else math.nan
    return Score(mean, std)


def completed(history: History) -> History:
    """Return the configurations that may be selected: complete, with every run finished that any complete one has.

    Pruned, failed and running ones are excluded, also one with a diverged run, and one that lacks a run of the others:
    means over different folds are not comparable.
    """
    done = [c for c in history if c.state == "complete"]
    cells = {(cell.seed, cell.fold) for c in done for cell in c.cells}
    return tuple(c for c in done if c.cells and {(k.seed, k.fold) for k in c.cells if _scored(k)} == cells)


def ranking(history: History) -> tuple[Ranked, ...]:
    """Rank the completed configurations from best to worst cross-validated mean; ties in the order of their ids."""
    scored = [Ranked(c, score(c)) for c in completed(history)]
    return tuple(sorted(scored, key=lambda r: (-r.score.mean, r.configuration.id)))


def best(history: History) -> Configuration:
    """Return the completed configuration with the highest cross-validated mean. SweepError without any."""
    return _ranked(history)[0].configuration


def one_standard_error(history: History) -> tuple[Ranked, ...]:
    """Return the completed configurations whose mean is within one standard error, s/√J, of the best mean; best first.

    Breiman et al., "Classification and Regression Trees" (1984), section 3.4.3. Runs share training data, so the true
    error is larger and the list, if anything, too short. One run has no standard error: only the best and ties.

    Raises:
        SweepError: Without a completed configuration.
    """
    ranked = _ranked(history)
    top = ranked[0]
    error = 0.0 if math.isnan(top.score.std) else top.score.std / math.sqrt(len(top.configuration.cells))
    return tuple(r for r in ranked if r.score.mean >= top.score.mean - error)


def _ranked(history: History) -> tuple[Ranked, ...]:
    ranked = ranking(history)
    if not ranked:
        raise SweepError(f"no configuration has finished all its runs yet: {_states(history)}")
    return ranked


def _states(history: History) -> str:
    if not history:
        return "the sweep has none so far"
    counts = Counter(c.state for c in history)
    labels: dict[ConfigState, str] = {"running": "unfinished", "pruned": "pruned", "failed": "failed"}
    parts = [f"{counts[state]} {word}" for state, word in labels.items()]
    if counts["complete"]:
        parts.append(f"{counts['complete']} complete, but with a diverged or missing run")
    return ", ".join(parts)


def _scored(cell: Cell) -> bool:
    return cell.state == "finished" and cell.best is not None


def exit_scores(side: Iterable[Configuration], cells: Iterable[SeedFold]) -> np.ndarray:
    """Return (runs, exits) scores at the best epoch, means over configurations that all finished these runs.

    Empty where exits are not recorded.
    """
    best = [{(k.seed, k.fold): k.best.exits for k in c.cells if k.best is not None} for c in side]
    rows = [[exits_of[cell] for exits_of in best] for cell in cells]
    return np.mean(rows, axis=1) if all(exits for row in rows for exits in row) else np.empty((0, 0))


def cells_of(side: History) -> list[SeedFold]:
    """Return (seed, fold) of the runs of completed configurations, the same for all."""
    return sorted((k.seed, k.fold) for k in side[0].cells)
