"""How much a difference in score varies by the choice of validation samples, from the recorded validation logits.

Each sample has an influence on a run's score (`leebert.metrics`); the difference of two runs' influences, on the same
samples, gives the sampling variance of their difference in score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from leebert.errors import SweepError
from leebert.evaluate import RecordedLogits
from leebert.metrics import METRICS
from leebert.metrics.metric import Metric
from leebert.tradeoff import Tradeoff, tradeoff
from tune.analysis.sweeps import SweepPool
from tune.analysis.tradeoff import RankingObjective
from tune.store.held_out import cell_logits
from tune.store.history import CellKey, SeedFold

#: By (seed, fold), the pairs of configurations whose differences are averaged in this run.
PairsOfRuns = Mapping[SeedFold, Sequence[tuple[str, str]]]


@dataclasses.dataclass(frozen=True)
class Influences:
    """The influence of each validation sample on the scores of runs.

    Attributes:
        by_run: (E, n) influences by run: on the score of each of E exits, in the order of the samples in the training split.
    """

    by_run: Mapping[CellKey, np.ndarray]

    def variances(self, pairs: PairsOfRuns) -> tuple[float, list[float]]:
        """Return the sampling variance of a fold's mean difference over seeds, a mean over folds.

        Args:
            pairs: The compared configurations of each run.

        Returns:
            The variance of the mean over exits, and that of each exit; 0 and none if a run is missing.
        """
        needed = {(config, *cell) for cell, both in pairs.items() for pair in both for config in pair}
        shapes = {self.by_run[key].shape[0] if key in self.by_run else 0 for key in needed}
        if len(shapes) != 1 or 0 in shapes:
            return 0.0, []
        by_fold: dict[int, list[np.ndarray]] = {}
        for (seed, fold), both in pairs.items():
            differences = [self.by_run[a, seed, fold] - self.by_run[b, seed, fold] for a, b in both]
            by_fold.setdefault(fold, []).append(np.mean(differences, axis=0))
        if any(len({one.shape for one in of_fold}) > 1 for of_fold in by_fold.values()):
            return 0.0, []
        means = [np.mean(of_fold, axis=0) for of_fold in by_fold.values()]  # (E, n) each
        exits = np.mean([mean.var(axis=1, ddof=1) / mean.shape[1] for mean in means], axis=0)
        together = np.mean([mean.mean(axis=0).var(ddof=1) / mean.shape[1] for mean in means])
        return float(together), [float(exit) for exit in exits]


#: No influences: comparisons then rely on the differences of folds alone.
NONE = Influences({})


def influences(
    pool: SweepPool,
    ids: Collection[str],
    objectives: Sequence[RankingObjective] = (),
    replayed: Mapping[CellKey, Tradeoff] | None = None,
) -> list[Influences]:
    """Read the influences of all samples on the finished runs of some configurations.

    Args:
        pool: The sweep.
        ids: The configurations.
        objectives: Layer speed-ups at which runs are compared too.
        replayed: The curves of these runs under the objectives' criterion.

    Returns:
        The influences on the exits' scores, then, for each objective, those on the score at its speed-up. A run without
        readable logits, or that cannot reach a speed-up, is missing.
    """
    metric = METRICS[str(pool.manifest["metric"])]
    results: list[dict[CellKey, np.ndarray]] = [{} for _ in range(1 + len(objectives))]
    for key, record in pool.state.cells.items():
        if key[0] not in ids or "held_out" not in record:
            continue
        try:
            recorded, rows = cell_logits(pool.homes[key[0]], record)
        except SweepError:  # reported where the scores are read
            continue
        if recorded.labels is None:
            continue
        order, labels, predicted = np.argsort(rows), recorded.labels, recorded.logits.argmax(axis=-1)
        results[0][key] = np.stack([metric.influence(labels, exit) for exit in predicted])[:, order]
        curve = (replayed or {}).get(key)
        for objective, result in zip(objectives, results[1:], strict=True):
            if curve is not None and objective.speed_up is not None and curve.reaches(objective.speed_up):
                result[key] = _at_speed_up(recorded, curve, objective.speed_up, metric)[None, order]
    return [Influences(result) for result in results]


def _at_speed_up(recorded: RecordedLogits, curve: Tradeoff, speed_up: float, metric: Metric) -> np.ndarray:
    """Return (n,) influences on the score at a layer speed-up, interpolated between thresholds as the score is."""
    from leebert.exits.replay import make_criterion, replay

    assert recorded.labels is not None
    m, n, k = recorded.logits.shape
    if np.isnan(curve.thresholds).any():  # a curve of an end record has none
        curve = tradeoff(recorded, curve.criterion, curve.patience)
    layers = curve.depth / speed_up
    after = int(np.searchsorted(curve.layers, layers).clip(1, len(curve) - 1)) if len(curve) > 1 else 0
    before = max(0, after - 1)
    width = curve.layers[after] - curve.layers[before]
    share = float(np.clip((layers - curve.layers[before]) / width, 0, 1)) if width > 0 else 1.0
    influence = np.zeros(n)
    for index, weight in ((before, 1 - share), (after, share)):
        if weight:
            threshold = float(curve.thresholds[index])
            criterion = make_criterion(curve.criterion, threshold, curve.patience, num_exits=m, num_classes=k)
            exits = replay(criterion, recorded.logits)
            predicted = recorded.logits[exits, np.arange(n)].argmax(axis=-1)
            influence += weight * metric.influence(recorded.labels, predicted)
    return influence
