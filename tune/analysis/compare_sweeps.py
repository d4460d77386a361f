"""The paired comparison of `tune.analysis.compare` on one or several sweeps, also at equal layer speed-ups."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leebert import live
from leebert.errors import ConfigError, LeebertError, SweepError
from leebert.tradeoff import Tradeoff
from tune.analysis.compare import Comparison, compare, jsonable
from tune.analysis.power import DIFFERENCE, Spread, StatedVariances
from tune.analysis.samples import NONE, Influences, influences
from tune.analysis.settings import uneven_settings
from tune.analysis.stats import Interval, corrected_t, sign_flip
from tune.analysis.still_weights import StillPairs, still_pairs
from tune.analysis.sweeps import SweepPool, load_pools
from tune.analysis.tradeoff import RankingObjective, curves
from tune.analysis.verdict import SPEED_UPS, Verdict, choose_sides, make_verdict
from tune.analysis.wording import side_name, verdict
from tune.store.curves import CellCurves, layers_needed
from tune.store.folder import SweepFolder
from tune.store.history import CellKey
from tune.store.ranking import best, completed

#: A comparison at a layer speed-up, or why there is none.
AtSpeedUp = tuple[RankingObjective, Comparison | str]


@dataclasses.dataclass(frozen=True)
class OnSweep:
    """A minus B on one sweep: by the mean over exits, and by the score at each layer speed-up.

    Attributes:
        pool: The sweep, or joined sweeps of one task.
        scores: The comparison by the mean over exits.
        at_speed_ups: The comparisons at layer speed-ups.
        layers: By side (`clo-v2`, `lr_theta=0.0001`), the layers needed by its best configuration
            (:func:`tune.store.curves.layers_needed`).
        no_layers: The reason why a side has none; empty if none is missing.
        still: For each paired comparison in which loss weights could matter, the number of pairs in which they did not.
        replayed: The curves of the compared runs; empty without a comparison at a speed-up.
        difference: The difference that the verdict asks for, a fraction.
    """

    pool: SweepPool
    scores: Comparison
    at_speed_ups: tuple[AtSpeedUp, ...]
    layers: Mapping[str, float]
    no_layers: str = ""
    still: tuple[StillPairs, ...] = ()
    replayed: Mapping[CellKey, Tradeoff] = dataclasses.field(default_factory=dict)
    difference: float = DIFFERENCE

    @functools.cached_property
    def verdict(self) -> Verdict:
        """The verdict on A against B."""
        return make_verdict(self.pool, self.scores, self.at_speed_ups, self.replayed, self.difference)

    def name_of(self, key: str) -> str:
        """Return the name of the side with this key of `layers`."""
        scores = self.scores
        names = {_key(scores.option, value): side_name(scores.option, value) for value in (scores.a, scores.b)}
        return names[key]

    @property
    def sweep(self) -> str:
        return self.pool.name

    @property
    def task(self) -> str:
        return self.pool.spec.task_name

    @property
    def size(self) -> int:
        """The number of tests, those of single exits not counted."""
        return self.scores.size + sum(c.size for _, c in self.at_speed_ups if isinstance(c, Comparison))

    def as_dict(self) -> dict[str, Any]:
        """Return it JSON-ready, scores as fractions."""
        return {
            "sweep": self.sweep,
            "task": self.task,
            "running": self.pool.running,
            "verdict": self.verdict.as_dict(),
            **self.scores.as_dict(),
            "layers": dict(self.layers),
            **({"no_layers": self.no_layers} if self.no_layers else {}),
            "at_speed_ups": [
                {
                    "speed_up": objective.speed_up,
                    "criterion": objective.criterion,
                    **({} if objective.patience is None else {"patience": objective.patience}),
                    **(result.as_dict() if isinstance(result, Comparison) else {"missing": result}),
                }
                for objective, result in self.at_speed_ups
            ],
            "still_weights": [dataclasses.asdict(one) for one in self.still],
        }


def _key(option: str, value: Any) -> str:
    """Return the key of a side in JSON."""
    return str(value) if option == "algorithm" else f"{option}={value}"


def compare_sweeps(
    folders: Sequence[SweepFolder],
    a: str,
    b: str,
    *,
    option: str = "algorithm",
    where: Mapping[str, Any] | None = None,
    objectives: Sequence[RankingObjective] = (),
    epochs: bool = False,
    difference: float = DIFFERENCE,
) -> list[OnSweep]:
    """Compare A and B on each of these sweeps, as :func:`compare_pool` does.

    Args:
        folders: The sweeps.
        a: First value of the option, as text.
        b: Second value, as text.
        option: Name of the option; `algorithm` compares methods.
        where: Option → value that both sides must have.
        objectives: Layer speed-ups at which the scores are compared too.
        epochs: Load the records of epochs, which figures need.
        difference: The difference that verdicts ask for, a fraction.

    Returns:
        One comparison per sweep, or per task whose sweeps have one side each.

    Raises:
        ConfigError: As :func:`tune.analysis.sweeps.load_pools`, or a value does not exist.
    """
    comparisons = []
    for pool in (pools := load_pools(folders, option, a, b, epochs=epochs)):
        live.phase(f"comparing {side_name(option, a)} with {side_name(option, b)} on {pool.name}")
        try:
            result = compare_pool(pool, a, b, option=option, where=where, objectives=objectives, difference=difference)
            comparisons.append(result)
        except LeebertError as error:
            raise type(error)(f"{pool.name}: {error}" if len(pools) > 1 else str(error)) from None
    return comparisons


def compare_pool(
    pool: SweepPool,
    a: str,
    b: str,
    *,
    option: str = "algorithm",
    where: Mapping[str, Any] | None = None,
    objectives: Sequence[RankingObjective] = (),
    replayed: Mapping[CellKey, Tradeoff] | None = None,
    difference: float = DIFFERENCE,
    by_samples: bool = True,
) -> OnSweep:
    """Compare A and B on the runs that are finished so far.

    Args:
        pool: The sweep.
        a: A's value of `option`.
        b: B's value.
        option: The option that is compared.
        where: Values of other options that restrict both sides.
        objectives: The layer speed-ups at which to compare as well, all under one exit criterion.
        replayed: That criterion's curves, if the caller has them.
        difference: The difference that the verdict asks for, a fraction.
        by_samples: Read the validation logits for the sampling variance, which narrows intervals.

    Returns:
        The comparison. A speed-up at which there is none has its reason in its place.

    Raises:
        ConfigError: The sweep lacks a side, or the sides cannot be paired.
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
    ids = _compared(pool, scores)
    by_run, no_curves = _replayed(pool, ids, objectives, replayed)
    if by_samples:
        of_exits, *of_speed_ups = influences(pool, ids, objectives, by_run)
        scores = compare(history, a, b, sampling=of_exits.variances, **options)
    else:
        of_speed_ups = [NONE] * len(objectives)
    values = {c.id: c.values for c in history}
    per_line = [still_pairs(line, option, pool.state.cells, values, spec) for line in scores.lines]
    still = tuple(pairs for pairs in per_line if pairs is not None)
    warnings = [sentence for pairs in still if (sentence := pairs.in_words())]
    paired = {id for side in scores.sides for id in side}
    mixed = uneven_settings(pool.name, pool.state, paired)
    scores = dataclasses.replace(scores, warnings=(*scores.warnings, *mixed, *warnings))
    at_speed_ups: list[AtSpeedUp] = [(objective, no_curves) for objective in objectives]
    if not no_curves:
        at_speed_ups = _at_speed_ups(pool, scores, by_run, list(zip(objectives, of_speed_ups, strict=True)), options)
    layers, no_layers = _layers(pool, scores)
    return OnSweep(
        pool=pool,
        scores=scores,
        at_speed_ups=tuple(at_speed_ups),
        layers=layers,
        no_layers=no_layers,
        still=still,
        replayed=by_run,
        difference=difference,
    )


def verdict_on(
    folder: SweepFolder, a: str | None = None, b: str | None = None, *, option: str = "algorithm"
) -> Verdict:
    """Return the verdict on A against B of one sweep, finished or not.

    Args:
        folder: The sweep.
        a: First value of the option, as text; None: as :func:`tune.analysis.verdict.choose_sides`.
        b: Second value, likewise.
        option: The compared option.

    Raises:
        ConfigError: The sweep lacks a side, or the sides cannot be paired.
    """
    a, b = choose_sides([folder], option, a, b)
    return compare_pool(SweepPool.of(folder), a, b, option=option, objectives=at_speed_ups()).verdict


def variances_of(folder: SweepFolder) -> StatedVariances:
    """Return the variances of the differences between a sweep's two main methods: of samples, folds and seeds.

    Args:
        folder: The sweep, finished or not.

    Raises:
        SweepError: It has fewer than two runs, or they do not differ.
        ConfigError: It has one method, or the methods cannot be paired.
    """
    a, b = choose_sides([folder])
    pool = SweepPool.of(folder)
    difference = compare_pool(pool, a, b).scores.overall.difference
    if not difference.std > 0:
        raise SweepError(f"sweep {folder.name}: fewer than two runs of {a} and {b}, or all with the same difference")
    seen = None if math.isnan(difference.between) and difference.folds > 1 else Spread.of(difference)
    return StatedVariances(difference.std, seen, int(pool.manifest["rows"]))


def at_speed_ups(
    speed_ups: Sequence[float] = (), criterion: str | None = None, patience: int | None = None
) -> list[RankingObjective]:
    """Return the layer speed-ups of a verdict, in rising order.

    Args:
        speed_ups: Further layer speed-ups.
        criterion: Name of the exit criterion; None: the default.
        patience: Its second parameter; None: the default.
    """
    every = sorted({*SPEED_UPS, *speed_ups})
    return [RankingObjective.of(f"speed-up={s}", criterion, patience, option="--speed-up") for s in every]


def _layers(pool: SweepPool, scores: Comparison) -> tuple[dict[str, float], str]:
    """Return the layers that the best of each side needs, and why one is missing: a side that learned nothing has none."""
    history = pool.state.history()
    layers: dict[str, float] = {}
    missing: list[str] = []
    for value, ids in zip((scores.a, scores.b), scores.sides, strict=True):
        side, name = completed(tuple(c for c in history if c.id in ids)), side_name(scores.option, value)
        key = _key(scores.option, value)
        learned = tuple(c for c in side if c.id not in pool.margins or pool.margins[c.id].learned)
        if learned:
            top = best(learned)
            ends = [pool.state.cells[top.id, cell.seed, cell.fold] for cell in top.cells]
            needed = layers_needed(ends, CellCurves(pool.homes[top.id], missing.append))
            if needed is not None:
                layers[key] = needed
        elif side:
            missing.append(f"no completed configuration of {name} is significantly above the majority class")
    return layers, "; ".join(dict.fromkeys(missing))


def _compared(pool: SweepPool, scores: Comparison) -> set[str]:
    """Return the paired configurations and the completed ones, from which tuning selects."""
    history = pool.state.history()
    ids = {id for line in (*scores.lines, scores.overall) for pair in line.paired for id in pair}
    for side in scores.sides:
        ids |= {c.id for c in completed(tuple(c for c in history if c.id in side))}
    return ids


def _replayed(
    pool: SweepPool, ids: set[str], objectives: Sequence[RankingObjective], replayed: Mapping[CellKey, Tradeoff] | None
) -> tuple[Mapping[CellKey, Tradeoff], str]:
    """Return these configurations' curves, or why there are none."""
    if not objectives:
        return {}, ""
    try:
        every = replayed or _curves(pool, ids, objectives[0])
    except LeebertError as error:
        return {}, str(error)
    by_run = {key: curve for key, curve in every.items() if key[0] in ids}
    folders = ", ".join(sweep.folder.name for sweep in pool.sweeps)
    lost = f"no finished run has readable validation logits; repair them by: leebert-tune resume {folders} --repair"
    return by_run, "" if by_run else lost


def _at_speed_ups(
    pool: SweepPool,
    scores: Comparison,
    by_run: Mapping[CellKey, Tradeoff],
    sampled: Sequence[tuple[RankingObjective, Influences]],
    options: Mapping[str, Any],
) -> list[AtSpeedUp]:
    """Compare at each speed-up."""
    history = pool.state.history()
    results: list[AtSpeedUp] = []
    for objective, of_samples in sampled:
        try:
            rescored = objective.rescored(history, by_run)
            results.append((objective, compare(rescored, scores.a, scores.b, sampling=of_samples.variances, **options)))
        except LeebertError as error:
            results.append((objective, str(error)))
    return results


def _curves(pool: SweepPool, ids: set[str], objective: RankingObjective) -> dict[CellKey, Tradeoff]:
    """Return the curves of these configurations' finished runs, from every folder of the pool."""
    by_run: dict[CellKey, Tradeoff] = {}
    for folder in (sweep.folder for sweep in pool.sweeps):
        records = {k: r for k, r in pool.state.cells.items() if k[0] in ids and pool.homes[k[0]] == folder.path}
        by_run |= curves(folder.path, records, pool.manifest["metric"], objective.criterion, objective.patience)
    return by_run


# Several sweeps together


@dataclasses.dataclass(frozen=True)
class Across:
    """One number per task: the mean over its sweeps of the mean over their comparisons. Their mean, with a t over tasks.

    Attributes:
        what: The compared quantity: the mean over exits, `tuned`, or a score at a speed-up.
        a: A's name.
        b: B's name.
        sweeps: The difference by sweep, a fraction.
        tasks: The difference by task.
        difference: The mean over tasks with its interval.
        sign_flip_p: The p of the sign-flip test, which is exact here, since tasks share no data.
    """

    what: str
    a: str
    b: str
    sweeps: Mapping[str, float]
    tasks: Mapping[str, float]
    difference: Interval
    sign_flip_p: float

    def in_words(self) -> str:
        """Return the verdict over tasks."""
        return verdict(self.a, self.b, self.difference, unit="task")

    def as_dict(self) -> dict[str, Any]:
        """Return it JSON-ready, scores as fractions."""
        plain: dict[str, Any] = jsonable(dataclasses.asdict(self))
        return {**plain, "verdict": self.in_words()}


def across(results: Sequence[OnSweep]) -> list[Across]:
    """Combine several sweeps: over all paired comparisons, tuned, and at each speed-up that all of them have."""
    if len(results) < 2:
        return []
    scores = results[0].scores
    names = (side_name(scores.option, scores.a), side_name(scores.option, scores.b))
    combined = [_across(str(RankingObjective()), results, [result.scores for result in results], names)]
    if all(result.scores.tuned for result in results):
        combined.append(_across("tuned", results, [result.scores for result in results], names, tuned=True))
    for i, (objective, _) in enumerate(results[0].at_speed_ups):
        comparisons = [c for result in results if isinstance(c := result.at_speed_ups[i][1], Comparison)]
        if len(comparisons) == len(results):
            combined.append(_across(str(objective), results, comparisons, names))
    return combined


def _across(
    what: str,
    results: Sequence[OnSweep],
    comparisons: Sequence[Comparison],
    names: tuple[str, str],
    *,
    tuned: bool = False,
) -> Across:
    sweeps = {}
    by_task: dict[str, list[float]] = {}
    for result, c in zip(results, comparisons, strict=True):
        of_tuned = [c.tuned.difference.mean] if tuned and c.tuned is not None else []
        sweeps[result.sweep] = float(np.mean(of_tuned or [line.difference.mean for line in c.lines]))
        by_task.setdefault(result.task, []).append(sweeps[result.sweep])
    tasks = {task: float(np.mean(differences)) for task, differences in by_task.items()}
    values = list(tasks.values())
    interval = corrected_t(values, 0.0, comparisons[0].confidence)
    a, b = (f"tuned {name}" if tuned else name for name in names)
    return Across(what, a, b, sweeps, tasks, interval, sign_flip(values))
