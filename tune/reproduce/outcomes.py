"""Summarise a finished run: every exit and every exit criterion on the development split, replayed from its logits."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from leebert.evaluate import RecordedLogits
from leebert.exits import FULL_MODEL, with_threshold
from leebert.metrics import per_exit
from leebert.thresholds import attainable, choose
from leebert.tradeoff import replay_point


@dataclasses.dataclass(frozen=True)
class CriterionResult:
    """One exit criterion at one threshold, on the development split.

    Attributes:
        criterion: The exit criterion.
        threshold: Its threshold; None for a criterion that has none.
        held_out: The layer speed-up on the validation samples, by which thresholds are chosen.
        layers: Mean exit layer.
        speed_up: Layer speed-up: depth / mean exit layer.
        score: The task's score, a fraction.
        measures: All measures of the task by name, fractions.
        counts: How many samples exit at each exit, (M,).
    """

    criterion: str
    threshold: float | None
    held_out: float
    layers: float
    speed_up: float
    score: float
    measures: dict[str, float]
    counts: list[int]


@dataclasses.dataclass(frozen=True)
class ReproducedCell:
    """One method trained with one seed.

    Attributes:
        method: The method's name.
        keep: The share of layers that a reduced network keeps; None for others.
        seed: The seed.
        configuration: The configuration's id.
        code: A digest of the code that trained it.
        held_out_score: The validation score, a fraction.
        exits: The score of each exit on the development split, (M,), fractions.
        exit_layers: The layer after which each exit predicts, (M,).
        depth: The number of layers of the unreduced network.
        structure: What the network was reduced to, as JSON; empty for an unreduced one.
        best_epoch: The epoch with the best validation score, from 0.
        epochs: The number of epochs that trained, over all stages.
        minutes_to_best: Wall-clock minutes from the start to the end of the best epoch.
        runtime: Device, threads and precision of the training.
        outcomes: The results of all exit criteria.
    """

    method: str
    keep: float | None
    seed: int
    configuration: str
    code: str
    held_out_score: float
    exits: list[float]
    exit_layers: list[int]
    depth: int
    structure: str
    best_epoch: int
    epochs: int
    minutes_to_best: float
    runtime: str
    outcomes: list[CriterionResult]

    @property
    def key(self) -> tuple[str, float | None, int]:
        return self.method, self.keep, self.seed

    def exiting(self, criterion: str, aim: float) -> CriterionResult | None:
        """Return an exit criterion's result whose layer speed-up on validation samples is nearest to an aim.

        Args:
            criterion: The exit criterion; a network with one exit always runs all its layers.
            aim: The layer speed-up.

        Returns:
            The result; None if the run has none of this criterion.
        """
        if len(self.exits) == 1:
            criterion = FULL_MODEL
        outcomes = [o for o in self.outcomes if o.criterion == criterion]
        return min(outcomes, key=lambda o: abs(np.log(o.held_out / aim)), default=None)


def summarise(
    record: Mapping[str, Any],
    epochs: Mapping[int, Mapping[str, Any]],
    values: Mapping[str, Any],
    held_out: RecordedLogits,
    splits: Sequence[RecordedLogits],
    *,
    metric: str,
    code: str,
    aims: Collection[float],
) -> ReproducedCell:
    """Summarise a run from its ledger records and its logits.

    Args:
        record: The record of the cell's end.
        epochs: The records of its epochs.
        values: The configuration's values by option.
        held_out: The validation logits.
        splits: The logits on each development split; scores are averaged over them (MNLI has two).
        metric: The task's metric.
        code: A digest of the code that trained it.
        aims: The layer speed-ups that thresholds are chosen for, or the nearest that the network attains. Of criteria
            whose thresholds are whole numbers, all are kept.

    Returns:
        The run.
    """
    m = len(held_out.logits)
    structure = record.get("structure") or {}
    scores = [per_exit(metric, _labels(split), split.logits)["score"] for split in splits]
    best = int(record["best_epoch"])
    exits: list[tuple[str, float | None]] = [(FULL_MODEL, None)]
    if m > 1:
        low, high = attainable(held_out.layers, held_out.depth)
        within = [min(max(aim, low), high) for aim in aims]
        criteria = [row for row in with_threshold().values() if row.unit_of is None]
        for row in (row for row in criteria if row.whole):
            first, last = row.bounds(m, held_out.logits.shape[-1])
            exits += [(row.name, float(threshold)) for threshold in range(int(first), int(last) + 1)]
        for row in (row for row in criteria if not row.whole):
            exits += [(row.name, choose(held_out, row.name, aim).threshold) for aim in within]
    return ReproducedCell(
        method=str(values["algorithm"]),
        keep=values.get("keep"),
        seed=int(record["seed"]),
        configuration=str(record["config"]),
        code=code,
        held_out_score=float(record["score"]),
        exits=np.mean(scores, axis=0).tolist(),
        exit_layers=list(held_out.layers),
        depth=held_out.depth,
        structure=json.dumps(structure, sort_keys=True) if structure else "",
        best_epoch=best,
        epochs=len({epoch["theta_updates"] for epoch in epochs.values()}),  # some only evaluate
        minutes_to_best=sum(float(epochs[e]["seconds"]) for e in range(best + 1)) / 60,
        runtime=_trained_on(record["runtime"]),
        outcomes=[_outcome(held_out, splits, metric, name, t) for name, t in exits],
    )


def _outcome(
    held_out: RecordedLogits, splits: Sequence[RecordedLogits], metric: str, criterion: str, threshold: float | None
) -> CriterionResult:
    points = [replay_point(split, metric, criterion, threshold) for split in splits]
    counts = np.sum([point.exits for point in points], axis=0)
    layers = float(counts @ np.asarray(held_out.layers) / counts.sum())
    measures = {name: float(np.mean([p.measures[name] for p in points])) for name in points[0].measures}
    return CriterionResult(
        criterion=criterion,
        threshold=threshold,
        held_out=replay_point(held_out, metric, criterion, threshold).speed_up,
        layers=layers,
        speed_up=held_out.depth / layers,
        score=measures["score"],
        measures=measures,
        counts=counts.tolist(),
    )


def _trained_on(runtime: Mapping[str, Any]) -> str:
    return f"{runtime['device']}, {runtime['threads']} thread(s), {runtime['precision']}"


def _labels(split: RecordedLogits) -> np.ndarray:
    assert split.labels is not None
    return split.labels
