"""Record the logits of all exits in one pass. `leebert.tradeoff` replays exit criteria and thresholds from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from leebert.deprecated import renamed_arguments

if TYPE_CHECKING:  # commands that only read recorded logits start without torch
    from leebert.record import SampleSet
    from leebert.runtime import Runtime


@dataclasses.dataclass(frozen=True)
class RecordedLogits:
    """The recorded logits of all exits on N samples, such as a validation fold.

    Attributes:
        logits: (M, N, K) float32, in the order of the samples.
        labels: (N,) class ids; None for unlabelled samples.
        layers: (M,) layers below each exit; (): 1 to M.
        depth: Layers of the unreduced network, the reference of speed-ups; 0: the last exit's layers.
    """

    logits: np.ndarray
    labels: np.ndarray | None
    layers: tuple[int, ...] = ()
    depth: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers) or tuple(range(1, len(self.logits) + 1)))
        object.__setattr__(self, "depth", self.depth or self.layers[-1])

    def mean_layers(self, exit_index: np.ndarray) -> float:
        """Compute the mean exit layer.

        Args:
            exit_index: (N,) exit of each sample, from 0.

        Returns:
            The mean, in layers (:attr:`layers`).
        """
        return float(np.asarray(self.layers)[exit_index].mean())

    def losses(self) -> np.ndarray:
        """Compute the mean cross-entropy of each exit, (M,), in nats; the samples must have labels."""
        assert self.labels is not None
        z = self.logits - self.logits.max(axis=-1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
        losses: np.ndarray = -log_p[:, np.arange(len(self.labels)), self.labels].mean(axis=1)
        return losses


@renamed_arguments(rows="samples")
def record_all(
    model: Any,
    samples: SampleSet,
    runtime: Runtime,
    batch_size: int = 64,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> RecordedLogits:
    """Run a model once over samples and record the logits of all exits, without dropout.

    Args:
        model: A multi-exit model (:class:`leebert.record.MultiExit`).
        samples: N samples.
        runtime: Device and precision.
        batch_size: Samples per forward pass; batches contain samples of similar length.
        progress: Wraps the iteration over batches, such as a progress bar.

    Returns:
        Logits (M, N, K) and, if the samples have them, labels, in the order of `samples`.

    Raises:
        ValueError: There are no samples.
    """
    import torch

    training = model.training
    model.eval()
    order = np.argsort(np.asarray(samples.lengths), kind="stable")
    logits: np.ndarray | None = None
    labels: np.ndarray | None = None
    try:
        for start in progress(range(0, len(order), batch_size)):
            index = order[start : start + batch_size]
            batch = {k: v.to(runtime.device) for k, v in samples.collate(index).items()}
            with torch.no_grad(), runtime.autocast():
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
        raise ValueError("samples: no samples to evaluate")
    return RecordedLogits(logits, labels, *layers_of(model))


def layers_of(model: Any) -> tuple[tuple[int, ...], int]:
    """Return `exit_layers` and `depth` of a model (:class:`leebert.record.MultiExit`); () and 0 by default."""
    return tuple(getattr(model, "exit_layers", ())), int(getattr(model, "depth", 0))
