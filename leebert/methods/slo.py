"""Single-level optimisation, eq. 7: D1 = D2 = D_train."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from leebert.methods.common import DISTILLATION, JOINT, LEEBERT, OMEGA, OMEGA_OPEN
from leebert.methods.method import Method

if TYPE_CHECKING:
    from leebert.optim.contract import Level
    from leebert.record import Batch


@dataclasses.dataclass(frozen=True)
class SLO:
    """Eq. 7: θ and ω descend on the same batch's loss, θ at λ1 and ω at λ2 (a rate that the paper does not specify)."""

    splits_data: bool = False

    def step(self, level: Level, b1: Batch, position: int) -> int:
        level.omega_step(at_lr_omega=level.theta_step(b1))
        return 0


def omega(config: Any) -> SLO:
    """Make the step of eq. 7."""
    return SLO()


METHOD = Method(
    name="slo",
    title="LeeBERT-SLO",
    label="SLO",
    group="learned weights",
    source=LEEBERT,
    trains="θ and ω on the same batches (eq. 7)",
    exits="patience",
    cost="1",
    differs=OMEGA_OPEN,
    options=DISTILLATION | OMEGA | JOINT,
    omega=omega,
    colour="#00855f",
    chart_order=3,
)
