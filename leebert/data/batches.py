"""Which rows go into which step: length buckets, the epoch of the paper, and the D1/D2 split made anew in each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from leebert.errors import DataError
from leebert.record import Batch, Rows
from leebert.runtime import generator

#: Rows are sorted by length within windows of so many batches: wide enough to save most padding, narrow enough that
#: the company a row keeps still changes from epoch to epoch.
WINDOW = 50


def updates_per_epoch(rows: int, batch_size: int) -> int:
    """⌊|D_train| / 2B⌋ θ updates, the same for every algorithm, so that comparisons are made at equal updates."""
    updates = rows // (2 * batch_size)
    if updates == 0:
        raise DataError(
            f"batch size {batch_size} is too large for {rows} training rows: an epoch has ⌊rows / 2B⌋ updates, "
            f"here none; use a batch size of at most {max(1, rows // 2)}"
        )
    return updates


def bucketed(indices: np.ndarray, lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Shuffled full batches of rows of similar length, (batches, B); rows that fill no batch are left out at random."""
    count = len(indices) // batch_size
    rows = rng.permutation(indices)[: count * batch_size]
    window = WINDOW * batch_size
    for start in range(0, len(rows), window):
        part = rows[start : start + window]
        rows[start : start + window] = part[np.argsort(lengths[part], kind="stable")]
    return rows.reshape(count, batch_size)[rng.permutation(count)]


@dataclasses.dataclass(frozen=True)
class EpochPlan:
    """The batches of one epoch, as row indices: `d1` (updates, B) for θ, and D2's, empty where nothing is split."""

    d1: np.ndarray
    d2_rows: np.ndarray
    lengths: np.ndarray
    batch_size: int
    seed: tuple[int | str, ...]

    def d2(self) -> Iterator[np.ndarray]:
        """Batches of D2 without end: they run on, and are reshuffled when used up."""
        lap = 0
        while True:
            yield from bucketed(self.d2_rows, self.lengths, self.batch_size, generator(*self.seed, "d2", lap))
            lap += 1


def plan_epoch(
    lengths: np.ndarray, batch_size: int, splits_data: bool, seed: tuple[int | str, ...], epoch: int
) -> EpochPlan:
    """The plan of one epoch, a function of the seed and the epoch alone, so that a resumed run meets the same batches.

    With `splits_data`, D_train is split anew, 5 : 5 at random, and θ sees D1. Without, batches are drawn from all of
    D_train without replacement, and one full pass takes two epochs.
    """
    n = len(lengths)
    updates = updates_per_epoch(n, batch_size)
    if splits_data:
        rng = generator(*seed, "split", epoch)
        order = rng.permutation(n)
        d1 = bucketed(order[: n // 2], lengths, batch_size, rng)[:updates]
        return EpochPlan(d1, order[n // 2 :], lengths, batch_size, (*seed, epoch))
    rng = generator(*seed, "pass", epoch // 2)
    batches = bucketed(np.arange(n), lengths, batch_size, rng)
    half = epoch % 2
    return EpochPlan(
        batches[half * updates : (half + 1) * updates], np.empty(0, int), lengths, batch_size, (*seed, epoch)
    )


class RowSubset:
    """Some rows of a larger set, as a set of its own."""

    def __init__(self, rows: Rows, indices: np.ndarray) -> None:
        self.rows = rows
        self.indices = np.asarray(indices)
        self.lengths = np.asarray(rows.lengths)[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def collate(self, indices: Any) -> Batch:
        return self.rows.collate(self.indices[np.asarray(indices)])
