"""Fixed loss weights: uniform weights, on all samples or on D1, and random weights drawn once."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leebert.optim.contract import Level
    from leebert.record import Batch


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Plain training of θ under fixed weights.

    Attributes:
        splits_data: False: train on all of D_train. True: train on D1 only, with the batches and dropout masks on which BLO
            and CLO train θ.
    """

    splits_data: bool = False

    def step(self, level: Level, b1: Batch, position: int) -> int:
        level.theta_step(b1)
        return 0
