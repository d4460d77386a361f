"""Wrong labels on purpose: symmetric label noise in training samples, for experiments with methods that should resist it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from leebert.errors import DataError

if TYPE_CHECKING:
    from leebert.record import Batch, SampleSet

#: Samples that are collated at once to read their labels.
_CHUNK = 512


class NoisyLabels:
    """Samples of which a share has the label of another class up to the largest one, each equally often; the choice is fixed.

    Args:
        samples: The samples.
        share: The share of wrong labels, rounded to whole samples.
        seed: Seed of the choice.
        exits: E: `labels` stay right, and batches have a column `exit_labels` (B, E) with the labels of the first E exits, of
            which each exit has another share of wrong ones. None: `labels` are wrong.

    Raises:
        DataError: There is no other class.
    """

    def __init__(self, samples: SampleSet, share: float, seed: int, exits: int | None = None) -> None:
        self._samples = samples
        labels = _labels(samples)
        rng = np.random.default_rng(seed)
        classes = int(labels.max(initial=0)) + 1
        if classes < 2:
            raise DataError("label_noise: all training samples have label 0, so there is no other class; set it to 0")
        self._column = "labels" if exits is None else "exit_labels"
        drawn = [_with_noise(labels, share, classes, rng) for _ in range(exits or 1)]
        self._labels = drawn[0] if exits is None else np.stack(drawn, axis=1)

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def lengths(self) -> object:
        return self._samples.lengths

    def collate(self, indices: object) -> Batch:
        """Make a batch of some samples, with the noisy labels."""
        import torch

        batch = dict(self._samples.collate(indices))
        noisy = self._labels[np.asarray(indices)]
        clean = batch["labels"]
        batch[self._column] = torch.as_tensor(noisy, dtype=clean.dtype, device=clean.device)
        return batch


def _with_noise(labels: np.ndarray, share: float, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Replace a share of labels, (N,), by other classes."""
    wrong = rng.permutation(len(labels))[: round(share * len(labels))]
    offsets = rng.integers(1, classes, size=len(wrong))
    noisy = labels.copy()
    noisy[wrong] = (labels[wrong] + offsets) % classes
    return noisy


def _labels(samples: SampleSet) -> np.ndarray:
    """Read all labels, (N,) int64."""
    parts = [np.arange(start, min(start + _CHUNK, len(samples))) for start in range(0, len(samples), _CHUNK)]
    return np.concatenate([samples.collate(part)["labels"].cpu().numpy() for part in parts])
