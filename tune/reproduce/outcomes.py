"""What is kept of a finished cell: every exit and every exit criterion on the development split, replayed from its logits."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from leebert.evaluate import HeldOut
from leebert.exits import FULL_MODEL, with_threshold
from leebert.metrics import per_exit
from leebert.thresholds import attainable, choose
from leebert.tradeoff import replay_point


@dataclasses.dataclass(frozen=True)
class CriterionResult:
    """One exit criterion at one threshold: on the development split its layers, speed-up, score and how many rows left where.

    held_out: the speed-up on the held-out rows, by which thresholds are chosen.
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

    keep: the share that a reduced network keeps. exits: the score of each exit on the development split, (M,).
    exit_layers: the layers that have run when each answers. structure: what the network was reduced to, as JSON. epochs:
    those in which it was trained. runtime: the device, threads and precision of its training.
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
        """The outcome of an exit criterion that comes nearest to a speed-up on held-out rows; None where the cell has none such.

        A network with one exit has one outcome.
        """
        if len(self.exits) == 1:
            criterion = FULL_MODEL
        mine = [o for o in self.outcomes if o.criterion == criterion]
        return min(mine, key=lambda o: abs(np.log(o.held_out / aim)), default=None)


def summarise(
    record: Mapping[str, Any],
    epochs: Mapping[int, Mapping[str, Any]],
    values: Mapping[str, Any],
    held_out: HeldOut,
    splits: Sequence[HeldOut],
    *,
    metric: str,
    code: str,
    aims: Collection[float],
) -> ReproducedCell:
    """A cell from the ledger's records and its logits. Over several splits (MNLI's two) scores are averaged.

    aims: the speed-ups that thresholds are chosen for, or the nearest that the network can have; of criteria whose
    thresholds are whole numbers, all are kept.
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
        for row in (row for row in criteria if row.whole):  # so few that all are kept
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
    held_out: HeldOut, splits: Sequence[HeldOut], metric: str, criterion: str, threshold: float | None
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


def _labels(split: HeldOut) -> np.ndarray:
    assert split.labels is not None
    return split.labels
