"""Weights that are never updated: the uniform and rand baselines (they differ in the weights they start with)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leebert.optim import Level
    from leebert.record import Batch


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Plain training of θ under fixed weights, on all of D_train."""

    splits_data: bool = False

    def step(self, level: Level, b1: Batch, position: int) -> int:
        level.theta_step(b1)
        return 0
