"""Bi-level optimisation, eq. 8, by alternating first-order steps."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leebert.optim.algorithm import Level
    from leebert.record import Batch


@dataclasses.dataclass(frozen=True)
class BLO:
    """Eq. 8: θ ← θ − λ1 ∇θ L_B1(θ, ω), then ω ← ω − λ2 ∇ω L_B2(θ, ω) with the updated θ."""

    splits_data: bool = True

    def step(self, level: Level, b1: Batch, position: int) -> int:
        level.theta_step(b1)
        (l2,) = level.losses(level.next_d2())
        level.omega_step(at_lr_omega=l2)
        return 0
