"""Single-level optimisation, eq. 7: D1 = D2 = D_train."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leebert.optim.algorithm import Level
    from leebert.record import Batch


@dataclasses.dataclass(frozen=True)
class SLO:
    """Eq. 7: θ and ω descend on the same batch's loss, θ at λ1 and ω at λ2 (whose rate the paper leaves open)."""

    splits_data: bool = False

    def step(self, level: Level, b1: Batch, position: int) -> int:
        level.omega_step(at_lr_omega=level.theta_step(b1))
        return 0
