"""The effect of the loss weights on an outer objective through θ's step.

Let θ' = θ + u(g) with g = ∇θ L_B1(θ, ω) = Σ_i w_i ∇θ l_i, which is linear in the weights, and let O be an outer objective at θ'
with v = ∇θ' O. Then

    ∂O/∂w_i = a_i = ⟨∇θ l_i on B1 at θ, d⟩ with d = (∂θ'/∂g)ᵀ v,

and the gradient of ω is Jᵀa with J = ∂w/∂ω. For an SGD step d = −λ1·v: a term gains weight where its gradient on B1 agrees
with the gradient of O (Luketina et al., ICML 2016; Lin et al., NeurIPS 2019). If O = L_B2 itself, its dependence on ω adds the
terms b on B2, as Jᵀb.

All a_i come from one difference of the terms along d, so no second derivative is needed:

- central: a = (l(θ + εd) − l(θ − εd)) / 2ε, with an error of order ε²
- one-sided: a = (l(θ + εd) − l(θ)) / ε, with an error of order ε; l(θ) is known from θ's own forward pass in float32

with ε = 0.01/‖d‖ (DARTS).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from leebert.optim.contract import LookAhead

#: Distance of a perturbed forward pass from θ, as a norm over all of θ (DARTS).
RADIUS = 0.01


def effect_of_weights(taken: LookAhead, d: Sequence[torch.Tensor], *, one_sided: bool = False) -> torch.Tensor:
    """Compute a, (n,), the gradient of an outer objective with respect to the weights through a step of θ.

    Args:
        taken: The step of θ.
        d: (∂θ'/∂g)ᵀ v, `taken.pullback(v)` of the gradient v of the outer objective at θ', one tensor per parameter.
        one_sided: Whether to take the one-sided difference: one forward pass instead of two.
    """
    import torch

    norm = torch.nn.utils.get_total_norm(d)
    epsilon = RADIUS / norm.clamp(min=torch.finfo(norm.dtype).tiny)  # d may be 0
    if one_sided:
        return (taken.losses_at(d, epsilon) - taken.losses_at_start()) / epsilon
    return (taken.losses_at(d, epsilon) - taken.losses_at(d, -epsilon)) / (2 * epsilon)
