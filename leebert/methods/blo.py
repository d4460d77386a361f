"""Bi-level optimisation, eq. 8, by alternating first-order steps."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from leebert.methods.common import (
    D2_OPEN,
    DISTILLATION,
    JOINT,
    LEEBERT,
    SAMPLED,
    OuterOptions,
    constant,
    outer_conflict,
    outer_of,
)
from leebert.methods.hyper import Hyper
from leebert.methods.method import Method

if TYPE_CHECKING:
    from leebert.optim.contract import Level
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


def omega(config: Any) -> BLO | Hyper:
    """Make the step of eq. 8.

    An outer objective without weights has no direct gradient for ω, so what remains of its gradient is `hyper`'s.
    """
    outer = outer_of(config)
    return Hyper(outer) if outer else BLO()


def costs(config: Any) -> list[tuple[int, float]]:
    """Count one stage of 4 units per step, or 8 with a hypergradient."""
    return constant(config, cost=4 / 3 if outer_of(config) is None else 8 / 3)


METHOD = Method(
    name="blo",
    title="LeeBERT-BLO",
    label="BLO",
    group="learned weights",
    source=LEEBERT,
    trains="θ on D1, ω on D2 (eq. 8)",
    exits="patience",
    cost="4/3",
    differs=D2_OPEN,
    options=DISTILLATION | SAMPLED | JOINT,
    own_options=OuterOptions,
    omega=omega,
    conflict=outer_conflict,
    costs=costs,
    samples="D1 and D2",
    colour="#de7921",
    chart_order=2,
)
