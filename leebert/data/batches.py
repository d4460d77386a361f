"""Batches of an epoch: length buckets, the paper's number of updates, and a new D1/D2 split each epoch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from leebert.errors import DataError
from leebert.record import Batch, SampleSet
from leebert.runtime import generator

#: Samples are sorted by length within windows of this many batches: wide enough to save most of the padding, narrow enough
#: that a sample's batch changes from epoch to epoch.
WINDOW = 50


def updates_per_epoch(samples: int, batch_size: int) -> int:
    """Return ⌊N / 2B⌋, the updates of θ in one epoch; every method makes the same number.

    Args:
        samples: N, the size of the training split.
        batch_size: B.

    Raises:
        DataError: N < 2B, so an epoch would have no update.
    """
    updates = samples // (2 * batch_size)
    if updates == 0:
        raise DataError(
            f"batch size {batch_size} is too large for {samples} training samples: an epoch has ⌊samples / 2B⌋ "
            f"updates, here none; use a batch size of at most {max(1, samples // 2)}"
        )
    return updates


def size_of_fixed_d2(samples: int, batch_size: int, share: float) -> int:
    """Return the size of a D2 that stays the same in every epoch.

    Args:
        samples: N, the size of the training split.
        batch_size: B.
        share: The share of D2, above 0.

    Raises:
        DataError: D2 has no full batch.
    """
    size = round(share * samples)
    if size < batch_size:
        raise DataError(
            f"fixed_d2 {share:g} of {samples} training samples is {size}, less than a batch of {batch_size}: use a share of at "
            f"least {math.ceil(1000 * batch_size / samples) / 1000:g}, or a smaller batch size"
        )
    return size


def bucketed(indices: np.ndarray, lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Shuffle samples into full batches of similar length.

    Args:
        indices: (n,) positions of the samples.
        lengths: (N,) length of every sample of the data set.
        batch_size: B.
        rng: The source of the order.

    Returns:
        (⌊n / B⌋, B) positions. A random remainder of n mod B samples is in no batch.
    """
    count = len(indices) // batch_size
    shuffled = rng.permutation(indices)[: count * batch_size]
    window = WINDOW * batch_size
    for start in range(0, len(shuffled), window):
        part = shuffled[start : start + window]
        shuffled[start : start + window] = part[np.argsort(lengths[part], kind="stable")]
    return shuffled.reshape(count, batch_size)[rng.permutation(count)]


@dataclasses.dataclass(frozen=True)
class EpochPlan:
    """The batches of one epoch.

    Attributes:
        d1: (updates, B) positions of the samples that train θ.
        d2_samples: Positions of the samples in D2; empty if the data is not split.
        lengths: (N,) length of each sample.
        batch_size: B.
        seed: Seed and epoch of the random streams.
    """

    d1: np.ndarray
    d2_samples: np.ndarray
    lengths: np.ndarray
    batch_size: int
    seed: tuple[int | str, ...]

    def d2(self) -> Iterator[np.ndarray]:
        """Yield batches (B,) of D2 without end; each pass over D2 has a new order."""
        lap = 0
        while True:
            yield from bucketed(self.d2_samples, self.lengths, self.batch_size, generator(*self.seed, "d2", lap))
            lap += 1


def plan_epoch(
    lengths: np.ndarray,
    batch_size: int,
    splits_data: bool,
    seed: tuple[int | str, ...],
    epoch: int,
    fixed_d2: float = 0.0,
) -> EpochPlan:
    """Plan the batches of one epoch. The plan depends on seed and epoch only, so a resumed run repeats it.

    Args:
        lengths: (N,) length of each sample.
        batch_size: B.
        splits_data: True: split D_train 5 : 5 at random in each epoch; θ trains on D1. False: draw batches from all of
            D_train without replacement; a full pass takes two epochs.
        seed: Seeds of the random streams.
        epoch: The epoch, from 0.
        fixed_d2: With `splits_data`: the share of samples that are D2 in every epoch, the same ones; θ trains on random batches
            of the others. 0: the halves of each epoch.

    Raises:
        DataError: The training split, or D2, is too small for the batch size.
    """
    n = len(lengths)
    updates = updates_per_epoch(n, batch_size)
    if splits_data and fixed_d2:
        order = generator(*seed, "fixed split").permutation(n)
        size = size_of_fixed_d2(n, batch_size, fixed_d2)
        d1 = bucketed(order[size:], lengths, batch_size, generator(*seed, "split", epoch))[:updates]
        return EpochPlan(d1, order[:size], lengths, batch_size, (*seed, epoch))
    if splits_data:
        rng = generator(*seed, "split", epoch)
        order = rng.permutation(n)
        d1 = bucketed(order[: n // 2], lengths, batch_size, rng)[:updates]
        return EpochPlan(d1, order[n // 2 :], lengths, batch_size, (*seed, epoch))
    rng = generator(*seed, "pass", epoch // 2)
    batches = bucketed(np.arange(n), lengths, batch_size, rng)
    parity = epoch % 2
    return EpochPlan(
        batches[parity * updates : (parity + 1) * updates], np.empty(0, int), lengths, batch_size, (*seed, epoch)
    )


class RowSubset:
    """A subset of a data set, with the interface of the whole.

    Args:
        rows: N samples.
        indices: (n,) positions of the samples to keep.
    """

    def __init__(self, rows: SampleSet, indices: np.ndarray) -> None:
        self.rows = rows
        self.indices = np.asarray(indices)
        self.lengths = np.asarray(rows.lengths)[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def collate(self, indices: Any) -> Batch:
        """Make a batch of the samples at these positions (B,) of the subset."""
        return self.rows.collate(self.indices[np.asarray(indices)])
