"""Uncertainty weighting (Kendall et al., CVPR 2018): a term's weight is the inverse of its loss, on the training batches."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from leebert.methods.common import DISTILLATION, JOINT, OMEGA, OMEGA_OPEN
from leebert.methods.method import Method

if TYPE_CHECKING:
    from leebert.optim.contract import Level
    from leebert.record import Batch


@dataclasses.dataclass(frozen=True)
class Uncertainty:
    """SLO on Σ_i w_i·l_i − ½·log w_i, with w_i = 1/σ_i²: without further constraints the best w_i is 1/(2·l_i)."""

    splits_data: bool = False

    def step(self, level: Level, b1: Batch, position: int) -> int:
        losses = level.theta_step(b1)
        level.omega_step(at_lr_omega=losses - 0.5 / level.weights())
        return 0


def omega(config: Any) -> Uncertainty:
    """Make the step on the losses and the logarithms of the weights."""
    return Uncertainty()


METHOD = Method(
    name="uncertainty",
    title="Uncertainty weighting",
    label="Uncertainty",
    group="learned weights",
    source="Kendall et al., CVPR 2018",
    trains="θ and ω on the same batches; a term −½·log w for each weight w in ω keeps it above 0",
    exits="patience",
    cost="1",
    differs=f"published for tasks, not exits, with w = exp(−s); here w is that of the parametrisation; {OMEGA_OPEN}",
    options=DISTILLATION | OMEGA | JOINT,
    omega=omega,
    colour="#827717",
    chart_order=5,
)
