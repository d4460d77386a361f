"""Record all exits' logits in one pass; scores, criteria and thresholds are replayed from them (`leebert.tradeoff`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

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
        """Mean layers executed where row n exits at exit `exit_index[n]`, from 0."""
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
