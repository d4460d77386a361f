"""How much a difference in score varies by the choice of validation samples, from the recorded validation logits.

Each sample has an influence on a run's score (`leebert.metrics`); the difference of two runs' influences, on the same
samples, gives the sampling variance of their difference in score.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

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


#: The influences of runs that a sweep keeps in memory, in bytes; beyond, those used longest ago are read again.
KEPT = 256 * 2**20


class _Runs:
    """Reads the influences of a sweep's runs when they are used, and keeps the last ones."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Any, np.ndarray | None] = OrderedDict()
        self._bytes = 0

    def keep(self, key: Any, value: np.ndarray | None) -> None:
        self._kept[key] = value
        self._bytes += 0 if value is None else value.nbytes
        while self._bytes > KEPT and len(self._kept) > 1:
            _, old = self._kept.popitem(last=False)
            self._bytes -= 0 if old is None else old.nbytes

    def get(
        self,
        pool: SweepPool,
        key: CellKey,
        objectives: Sequence[RankingObjective],
        replayed: Mapping[CellKey, Tradeoff],
        which: RankingObjective | None,
    ) -> np.ndarray | None:
        """Return the (E, n) influences of a run, read with those at all these objectives; None without readable logits."""
        if (which, key) not in self._kept:
            wanted = _read(pool, key, objectives, replayed)
            for objective, of_run in wanted.items():
                if (objective, key) not in self._kept:
                    self.keep((objective, key), of_run)
            return wanted[which]
        self._kept.move_to_end((which, key))
        return self._kept[which, key]


@dataclasses.dataclass(frozen=True)
class Influences:
    """The influence of each validation sample on the scores of runs, read when it is used.

    Attributes:
        pool: The sweep; None: there are no influences.
        ids: The configurations.
        objectives: The layer speed-ups that are read together.
        replayed: The curves of the runs under the objectives' criterion.
        which: The objective whose scores are meant; None: the scores of exits.
    """

    pool: SweepPool | None = None
    ids: Collection[str] = ()
    objectives: Sequence[RankingObjective] = ()
    replayed: Mapping[CellKey, Tradeoff] = dataclasses.field(default_factory=dict)
    which: RankingObjective | None = None

    def of(self, key: CellKey) -> np.ndarray | None:
        """Return the (E, n) influences on a run's E scores, samples in their order in the training split; None without."""
        if self.pool is None or key[0] not in self.ids or key not in self.pool.state.cells:
            return None
        runs = self.pool.cache.setdefault("influences", _Runs())
        result: np.ndarray | None = runs.get(self.pool, key, self.objectives, self.replayed, self.which)
        return result

    def variances(self, pairs: PairsOfRuns) -> tuple[float, list[float]]:
        """Return the sampling variance of a fold's mean difference over seeds, a mean over folds.

        Args:
            pairs: The compared configurations of each run.

        Returns:
            The variance of the mean over exits, and that of each exit; 0 and none if a run is missing.
        """
        sums: dict[int, np.ndarray] = {}
        counts: dict[int, int] = {}
        for (seed, fold), both in pairs.items():
            counts[fold] = counts.get(fold, 0) + 1
            for pair in both:
                for config, sign in zip(pair, (1, -1), strict=True):
                    of_run = self.of((config, seed, fold))
                    if of_run is None or (fold in sums and sums[fold].shape != of_run.shape):
                        return 0.0, []
                    total = sums.setdefault(fold, np.zeros(of_run.shape))
                    total += sign * of_run / np.float32(len(both))
        if len({total.shape[0] for total in sums.values()}) != 1:
            return 0.0, []
        means = [total / counts[fold] for fold, total in sums.items()]  # (E, n) each
        exits = np.mean([mean.var(axis=1, ddof=1) / mean.shape[1] for mean in means], axis=0)
        together = np.mean([mean.mean(axis=0).var(ddof=1) / mean.shape[1] for mean in means])
        return float(together), [float(exit) for exit in exits]


#: No influences: comparisons then rely on the differences of folds alone.
NONE = Influences()


def influences(
    pool: SweepPool,
    ids: Collection[str],
    objectives: Sequence[RankingObjective] = (),
    replayed: Mapping[CellKey, Tradeoff] | None = None,
) -> list[Influences]:
    """Return the influences of all samples on the finished runs of some configurations; a sweep reads each run once.

    Args:
        pool: The sweep.
        ids: The configurations.
        objectives: Layer speed-ups at which runs are compared too.
        replayed: The curves of these runs under the objectives' criterion.

    Returns:
        The influences on the exits' scores, then, for each objective, those on the score at its speed-up. A run without
        readable logits, or that cannot reach a speed-up, is missing.
    """
    return [Influences(pool, ids, objectives, replayed or {}, which) for which in (None, *objectives)]


def _read(
    pool: SweepPool, key: CellKey, objectives: Sequence[RankingObjective], replayed: Mapping[CellKey, Tradeoff]
) -> dict[RankingObjective | None, np.ndarray | None]:
    """Return a run's influences on its exits' scores and on those at the objectives, single precision."""
    metric, record = METRICS[str(pool.manifest["metric"])], pool.state.cells[key]
    results: dict[RankingObjective | None, np.ndarray | None] = dict.fromkeys((None, *objectives))
    if "held_out" not in record:
        return results
    try:
        recorded, rows = cell_logits(pool.homes[key[0]], record)
    except SweepError:  # reported where the scores are read
        return results
    if recorded.labels is None:
        return results
    order, labels, predicted = np.argsort(rows), recorded.labels, recorded.logits.argmax(axis=-1)
    results[None] = np.stack([metric.influence(labels, exit) for exit in predicted])[:, order].astype(np.float32)
    curve = replayed.get(key)
    for objective in objectives:
        if curve is not None and objective.speed_up is not None and curve.reaches(objective.speed_up):
            of_run = _at_speed_up(recorded, curve, objective.speed_up, metric)
            results[objective] = of_run[None, order].astype(np.float32)
    return results


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
