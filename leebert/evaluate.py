"""One pass records every exit's logits; every score, rule and threshold is replayed from that record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from leebert.metrics import measures
from leebert.record import Rows
from leebert.runtime import Runtime


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """What all exits said of N rows: logits (M, N, K) float32, labels (N,) or None for unlabelled rows, in row order.

    layers: (M,) how many layers have run when an exit answers; () stands for 1 to M. depth: the layers of the unreduced
    network, to which speed-ups relate; 0 stands for the last exit's.
    """

    logits: np.ndarray
    labels: np.ndarray | None
    layers: tuple[int, ...] = ()
    depth: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers) or tuple(range(1, len(self.logits) + 1)))
        object.__setattr__(self, "depth", self.depth or self.layers[-1])

    def mean_layers(self, exit_index: np.ndarray) -> float:
        """Mean layers executed where row n leaves at exit `exit_index[n]`, from 0."""
        return float(np.asarray(self.layers)[exit_index].mean())

    def losses(self) -> np.ndarray:
        """Mean cross-entropy of each exit, (M,)."""
        assert self.labels is not None
        z = self.logits - self.logits.max(axis=-1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
        return -log_p[:, np.arange(len(self.labels)), self.labels].mean(axis=1)


@torch.no_grad()
def record_all(
    model: Any,
    rows: Rows,
    runtime: Runtime,
    batch_size: int = 64,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> HeldOut:
    """Run `model` once over `rows`, all exits, dropout off. Batches go by length, the result is in row order."""
    training = model.training
    model.eval()
    order = np.argsort(np.asarray(rows.lengths), kind="stable")
    logits: np.ndarray | None = None
    labels: np.ndarray | None = None
    try:
        for start in progress(range(0, len(order), batch_size)):
            index = order[start : start + batch_size]
            batch = {k: v.to(runtime.device) for k, v in rows.collate(index).items()}
            with runtime.autocast():
                record = model.record(batch)
            if logits is None:
                m, _, k = record.logits.shape
                logits = np.empty((m, len(order), k), np.float32)
                labels = np.empty(len(order), np.int64) if record.labels is not None else None
            logits[:, index] = record.logits.float().cpu().numpy()
            if labels is not None:
                labels[index] = record.labels.cpu().numpy()
    finally:
        model.train(training)
    if logits is None:
        raise ValueError("no rows to evaluate")
    return HeldOut(logits, labels, *layers_of(model))


def layers_of(model: Any) -> tuple[tuple[int, ...], int]:
    """`exit_layers` and `depth` of a model (:class:`leebert.record.MultiExit`); () and 0 where it doesn't say."""
    return tuple(getattr(model, "exit_layers", ())), int(getattr(model, "depth", 0))


@dataclasses.dataclass(frozen=True)
class Point:
    """One rule at one threshold: mean layers executed, the speed-up depth / layers, and the task's measures."""

    strategy: str
    threshold: float | None
    patience: int | None  # of rules that have one beside their threshold
    layers: float
    speed_up: float
    measures: dict[str, float]
    exits: tuple[int, ...]  # how many rows left at each exit

    @property
    def saving(self) -> float:
        """DeeBERT's expected time saving, 1 − Σ i·N_i / Σ M·N_i: the share of all layers that is not executed."""
        return 1 - 1 / self.speed_up

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "saving": self.saving, "exits": list(self.exits)}


def replay_point(
    held_out: HeldOut, metric: str, strategy: str, threshold: float | None, patience: int | None = None
) -> Point:
    """The outcome of one rule on recorded logits, as per-instance inference would have had it."""
    from leebert.exits import make_strategy, replay
    from leebert.rules import RULES

    assert held_out.labels is not None
    m, _, k = held_out.logits.shape
    rule = make_strategy(strategy, threshold, patience, num_exits=m, num_classes=k)
    exit_index = replay(rule, held_out.logits)
    predicted = held_out.logits[exit_index, np.arange(len(exit_index))].argmax(axis=-1)
    layers = held_out.mean_layers(exit_index)
    counts = tuple(int(c) for c in np.bincount(exit_index, minlength=m))
    counted = RULES[strategy].counted(patience, m) if strategy in RULES else None
    told = measures(metric, held_out.labels, predicted)
    return Point(strategy, threshold, counted, layers, held_out.depth / layers, told, counts)


def curve(
    held_out: HeldOut, metric: str, strategy: str, thresholds: Iterable[float | None], patience: int | None = None
) -> list[Point]:
    """One point per threshold."""
    return [replay_point(held_out, metric, strategy, t, patience) for t in thresholds]
