"""The derivative of an optimiser's step by its gradient: ∂θ'/∂g of the last step θ → θ'.

θ, moments and step count from before the step are constants. The supported optimisers work element by element, so the
derivative is one number per element of θ. It includes −λ1.

SGD, plain or with momentum μ, is linear in g: −λ1, and with Nesterov's momentum −λ1·(1 + μ).

AdamW at its step t, with m = β1·m₀ + (1−β1)·g, s = β2·s₀ + (1−β2)·g², m̂ = m / (1−β1^t), r = √(s / (1−β2^t)) and
θ' = (1 − λ1·decay)·θ − λ1·m̂ / (r + ε):

    ∂θ'/∂g = −λ1 / (r + ε) · [ (1−β1)/(1−β1^t) − (1−β2)/(1−β2^t) · m̂·g / (r·(r + ε)) ]

The first term is the preconditioner with constant s; the second is the contribution of g to s. At t = 1 they cancel except
for ε, since AdamW's first step depends only on the sign of g. Later, with the usual βs and gradients of constant size, the
second is about 10/t of the first, and at least a hundredth of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from leebert.errors import ConfigError

#: Matrices with fewer rows are not worth a search for rows without a gradient.
_TABLE = 2048


def through_step(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    v: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """Compute (∂θ'/∂g)ᵀ v of an optimiser's last step.

    Args:
        optimizer: AdamW or SGD, after the step.
        parameters: The parameters θ.
        gradients: Their gradients g in the step.
        v: A vector of θ's size, one tensor per parameter.

    Returns:
        New tensors in the order of the parameters.

    Raises:
        ConfigError: The optimiser or one of its options is not supported.
    """
    derivative = _derivative(optimizer)
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    return [
        derivative(groups[p], optimizer.state.get(p, {}), g, w)
        for p, g, w in zip(parameters, gradients, v, strict=True)
    ]


def _derivative(optimizer: torch.optim.Optimizer) -> Any:
    groups = optimizer.param_groups
    if isinstance(optimizer, torch.optim.AdamW) and not any(g["amsgrad"] or g["maximize"] for g in groups):
        return _adamw
    if isinstance(optimizer, torch.optim.SGD) and not any(g["dampening"] or g["maximize"] for g in groups):
        return _sgd
    raise ConfigError(
        f"a hypergradient can't differentiate a step of {type(optimizer).__name__} as it is set up here: "
        "use AdamW without amsgrad, or SGD without dampening"
    )


def _sgd(group: Mapping[str, Any], state: Mapping[str, Any], g: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    rate: float = group["lr"] * (1 + (group["momentum"] if group["nesterov"] else 0))
    return v * -rate


def _adamw(group: Mapping[str, Any], state: Mapping[str, Any], g: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    if not state:
        return torch.zeros_like(v)  # the parameter never had a gradient
    moments = (state["exp_avg"], state["exp_avg_sq"])
    rows = _rows_with_gradient(g)
    if rows is None:
        return _adamw_of(group, state["step"], *moments, g, v)
    part = _adamw_of(group, state["step"], *(tensor[rows] for tensor in (*moments, g, v)))
    return torch.zeros_like(v).index_copy_(0, rows, part)


def _rows_with_gradient(g: torch.Tensor) -> torch.Tensor | None:
    """Return the indices of a matrix's rows that are not 0 throughout; None if they are more than half.

    A batch touches few rows of an embedding table, which is often as large as all layers together.
    """
    if g.dim() != 2 or len(g) < _TABLE or type(g) is not torch.Tensor:  # an estimate of memory has shapes only
        return None
    rows = torch.linalg.vector_norm(g, float("inf"), dim=1).nonzero().squeeze(1)
    return rows if 2 * len(rows) < len(g) else None


def _adamw_of(
    group: Mapping[str, Any], step: torch.Tensor, m: torch.Tensor, s: torch.Tensor, g: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    beta1, beta2 = group["betas"]
    t = step.double()
    past1, past2 = 1 - beta1**t, 1 - beta2**t
    # In place where possible: for large tensors, new memory costs more than the arithmetic.
    root = (s / past2).sqrt_()
    below = root + group["eps"]
    chained: torch.Tensor = (
        (m * g).div_(root).div_(below).mul_((1 - beta2) / (past2 * past1))
    )  # the contribution of g to s
    chained.masked_fill_(root == 0, 0)  # g² may be 0 in floating point where g isn't
    chained.neg_().add_((1 - beta1) / past1).div_(below).mul_(v).mul_(-group["lr"])
    # Where g is exactly 0, no loss term depends on the element (such as embeddings of absent words). Divided by almost 0, v
    # would only add noise to the direction.
    return chained.masked_fill_(g == 0, 0)
