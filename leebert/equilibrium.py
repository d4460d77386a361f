"""Gradient equilibrium (Li et al., ICCV 2019; used by ElasticBERT and COST-EFF): no exit's gradient outweighs another's.

Without it the sum over exits reaches layer i with as many gradients as there are exits from i on, so that the first
layers learn from many and with a larger variance. With M exits, counted from 1, the gradient that flows into the
state at exit i is multiplied by 1/(M−i+1) from exit i itself and by (M−i)/(M−i+1) from all that lies above. Below, the
product of these factors is the same for every exit: the trunk between exits i−1 and i gets 1/(M−i+1) of the gradient of
each of the M−i+1 exits above it, their mean. The exits' own parameters (and a pooler) get theirs in full.
"""

from __future__ import annotations

from typing import Any

import torch


class _Scaled(torch.autograd.Function):
    """The identity whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * ctx.factor, None


def branch_and_trunk(state: torch.Tensor, exit_: int, num_exits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The state at an exit (from 0) of M, any shape, as the exit is to see it and as the next layer is.

    Both are the state itself; only their gradients differ, 1/(M−exit) and (M−exit−1)/(M−exit) of what flows back.
    """
    above = num_exits - exit_
    return _scaled(state, 1 / above), _scaled(state, (above - 1) / above)


def _scaled(state: torch.Tensor, factor: float) -> torch.Tensor:
    scaled: torch.Tensor = _Scaled.apply(state, factor)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return scaled
