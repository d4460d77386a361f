"""Bi-level optimisation by the exact hypergradient, which includes the effect of ω on θ's step."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from leebert.methods.common import D2_OPEN, DISTILLATION, FIRST, SAMPLED, constant
from leebert.methods.method import Method

if TYPE_CHECKING:
    from leebert.optim.contract import Level
    from leebert.record import Batch

#: Distance of the two perturbed forward passes from θ, as a norm over all of θ (DARTS).
RADIUS = 0.01


@dataclasses.dataclass(frozen=True)
class Hyper:
    """BLO with the gradient of ω ↦ L_B2(θ'(ω), ω), where θ' = θ + u(∇θ L_B1(θ, ω)) is θ after its step.

    With l the loss terms, J = ∂w/∂ω and b = l on B2 at θ', BLO's gradient for ω is Jᵀb. The true one is Jᵀ(b + a),

        a_i = ⟨∇θ l_i on B1 at θ, d⟩ with d = (∂θ'/∂g)ᵀ v and v = ∇θ' L_B2(θ', ω),

    since g = ∇θ L_B1 = Σ_i w_i ∇θ l_i is linear in the weights; for an SGD step d = −λ1·v. All a_i come from one
    central difference, a = (l(θ + εd) − l(θ − εd)) / 2ε with ε = 0.01/‖d‖, so no second derivative is needed.
    θ takes the same step as under BLO. A step costs 8 units (forward 1, backward 2): 3 for θ, 3 for v and 2 for the
    perturbed forward passes.
    """

    splits_data: bool = True

    def step(self, level: Level, b1: Batch, position: int) -> int:
        import torch

        descent = level.look_ahead(b1)
        b, v = level.gradient(level.next_d2())
        d = descent.pullback(v)
        del v  # as large as θ
        norm = torch.nn.utils.get_total_norm(d)
        epsilon = RADIUS / norm.clamp(min=torch.finfo(norm.dtype).tiny)  # d may be 0
        up, down = descent.losses_at(d, epsilon), descent.losses_at(d, -epsilon)
        level.omega_step(at_lr_omega=b + (up - down) / (2 * epsilon))
        return 0


def omega(config: Any) -> Hyper:
    """Make the step along the hypergradient."""
    return Hyper()


METHOD = Method(
    name="hyper",
    title="LeeBERT-hyper",
    label="Hypergradient",
    group="learned weights",
    source="the true hypergradient of eq. 8; beyond the paper",
    trains="θ on D1; ω on D2, by the gradient through θ's update",
    exits="patience",
    cost="8/3",
    differs=f"not published: BLO without the approximation that θ's step is independent of ω; {D2_OPEN}",
    options=DISTILLATION | SAMPLED | FIRST,
    omega=omega,
    costs=functools.partial(constant, cost=8 / 3),
    samples="D1 and D2",
    colour="#b3261e",
    chart_order=4,
)
