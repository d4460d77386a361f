"""Cross-level optimisation: ω learns from D1 and from D2 (eq. 9, algorithms 1 and 2)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from leebert.methods.common import CYCLES, D2_OPEN, DISTILLATION, JOINT, LEEBERT, OuterOptions, outer_of
from leebert.methods.method import Method
from leebert.optim.hypergradient import effect_of_weights
from leebert.optim.outer import OuterObjective

if TYPE_CHECKING:
    from leebert.optim.contract import Level
    from leebert.record import Batch


@dataclasses.dataclass(frozen=True)
class CLO:
    """Eq. 9, algorithm 1 and algorithm 2: CLO-v2 in groups of C steps; C = 1 is CLO-v1.

    Steps 1..C−1: θ ← θ − λ1 ∇θ L_B1 and ω ← ω − λ1 ∇ω L_B1, both from the same forward pass, so that these steps cost
    no more than plain ones. Step C, and every step of CLO-v1: θ as before, then *with the updated θ*
    ω ← ω − λ1 ∇ω L_B1 − λ2 ∇ω L_B2. B2 is drawn once in C steps.

    With an outer objective O without weights (beyond the paper), L_B1 and L_B2 in ω's update become O on B1 and B2.
    Their only gradients for ω are those through θ's step (:mod:`leebert.optim.hypergradient`), and steps 1..C−1 update θ only.

    Attributes:
        cycle_length: C.
        omega_in_cycle: Whether steps 1..C−1 update ω; False follows section 3.4, where they update θ only.
        splits_data: Whether θ trains on D1 and ω also on D2.
        outer: O; None: L(θ, ω), as in the paper.
    """

    cycle_length: int = 1
    omega_in_cycle: bool = True
    splits_data: bool = True
    outer: OuterObjective | None = None

    def step(self, level: Level, b1: Batch, position: int) -> int:
        if self.outer and position + 1 == self.cycle_length:
            taken = level.look_ahead(b1)
            gradients = [level.gradient(batch, self.outer)[1] for batch in (level.next_d2(), b1)]
            a2, a1 = (effect_of_weights(taken, v) for v in gradients)
            level.omega_step(at_lr_theta=a1, at_lr_omega=a2)
            return 0
        before = level.theta_step(b1)
        if position + 1 < self.cycle_length:
            if self.omega_in_cycle and not self.outer:
                level.omega_step(at_lr_theta=before)
            return position + 1
        l2, l1 = level.losses(level.next_d2(), b1)  # B2 first, so that it has the same masks as under BLO
        level.omega_step(at_lr_theta=l1, at_lr_omega=l2)
        return 0


def omega(config: Any) -> CLO:
    """Make the step of algorithm 2, in cycles of C."""
    outer = outer_of(config, balanced=True)
    return CLO(cycle_length=config.cycle_length, omega_in_cycle=config.omega_in_cycle, outer=outer)


def cost_of_cycle(outer: OuterObjective | None, cycle_length: int) -> float:
    """Count an update of θ: once in C steps two forwards for ω or, without weights in O, two gradients and four forwards."""
    return 1 + (10 if outer else 2) / (3 * cycle_length)


def costs(config: Any) -> list[tuple[int, float]]:
    """Count one stage of cycles of C steps."""
    return [(config.max_epochs, cost_of_cycle(outer_of(config, balanced=True), config.cycle_length))]


METHOD = Method(
    name="clo-v2",
    title="LeeBERT (CLO-v2)",
    label="CLO-v2",
    group="learned weights",
    source=LEEBERT,
    trains="θ and ω on D1; in every C-th step, ω also on D2 (algorithm 2)",
    exits="patience",
    cost="1 + 2/(3C)",
    differs=D2_OPEN,
    options=DISTILLATION | CYCLES | JOINT,
    own_options=OuterOptions,
    omega=omega,
    costs=costs,
    samples="D1 and D2",
    omega_on_d1=True,
    colour="#2272b4",
    chart_order=0,
)
