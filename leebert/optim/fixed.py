"""Weights that are never updated: uniform weights, on all rows or on D1's batches, and weights that are drawn once."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leebert.optim.contract import Level
    from leebert.record import Batch


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Plain training of θ under fixed weights, on all of D_train.

    With `splits_data`, on D1 alone: the batches, in their order and with their masks, on which BLO and CLO train θ.
    """

    splits_data: bool = False

    def step(self, level: Level, b1: Batch, position: int) -> int:
        level.theta_step(b1)
        return 0
