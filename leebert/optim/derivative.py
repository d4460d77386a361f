"""How an optimiser's step depends on its gradient: ∂θ'/∂g of the step θ → θ' that was just taken.

All that the step started from (θ, moments, step count) is held, being the doing of earlier steps. The optimisers here
work element by element, so the derivative is one number per element of θ. It includes −λ1.

SGD, plain or with momentum μ, is linear in g: −λ1, and with Nesterov's momentum −λ1·(1 + μ).

AdamW at its step t, with m = β1·m₀ + (1−β1)·g, s = β2·s₀ + (1−β2)·g², m̂ = m / (1−β1^t), r = √(s / (1−β2^t)) and
θ' = (1 − λ1·decay)·θ − λ1·m̂ / (r + ε):

    ∂θ'/∂g = −λ1 / (r + ε) · [ (1−β1)/(1−β1^t) − (1−β2)/(1−β2^t) · m̂·g / (r·(r + ε)) ]

The first term is the preconditioner with s held; the second is what g adds to s. At t = 1 they cancel but for ε, since
AdamW's first step is the sign of g whatever its size. Later, with the usual βs and a g of its past's size, the second
is some 10/t of the first, down to a hundredth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from leebert.errors import ConfigError


def through_step(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    v: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """(∂θ'/∂g)ᵀ v for the step that `optimizer` has just taken on `gradients`: new tensors, in `parameters`' order.

    Raises ConfigError for an optimiser or an option of it that is not covered here.
    """
    rule = _rule(optimizer)
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    return [rule(groups[p], optimizer.state.get(p, {}), g, w) for p, g, w in zip(parameters, gradients, v, strict=True)]


def _rule(optimizer: torch.optim.Optimizer) -> Any:
    groups = optimizer.param_groups
    if isinstance(optimizer, torch.optim.AdamW) and not any(g["amsgrad"] or g["maximize"] for g in groups):
        return _adamw
    if isinstance(optimizer, torch.optim.SGD) and not any(g["dampening"] or g["maximize"] for g in groups):
        return _sgd
    raise ConfigError(
        f"method hyper can't differentiate a step of {type(optimizer).__name__} as it is set up here: "
        "use AdamW without amsgrad, or SGD without dampening"
    )


def _sgd(group: Mapping[str, Any], state: Mapping[str, Any], g: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    rate: float = group["lr"] * (1 + (group["momentum"] if group["nesterov"] else 0))
    return v * -rate


def _adamw(group: Mapping[str, Any], state: Mapping[str, Any], g: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    if not state:
        return torch.zeros_like(v)  # it has never had a gradient
    beta1, beta2 = group["betas"]
    t = state["step"].double()
    past1, past2 = 1 - beta1**t, 1 - beta2**t
    # In place as far as it goes: of the embeddings' size, new memory costs more than the arithmetic.
    root = (state["exp_avg_sq"] / past2).sqrt_()
    below = root + group["eps"]
    chained: torch.Tensor = (
        (state["exp_avg"] * g).div_(root).div_(below).mul_((1 - beta2) / (past2 * past1))
    )  # what g adds to s
    chained.masked_fill_(root == 0, 0)  # g² may be 0 in floating point where g isn't
    chained.neg_().add_((1 - beta1) / past1).div_(below).mul_(v).mul_(-group["lr"])
    # Where g is exactly 0, the batch touches nothing (the embeddings of absent words): no loss term depends on it, and
    # v there, divided by as good as nothing, would only be noise in the direction.
    return chained.masked_fill_(g == 0, 0)
