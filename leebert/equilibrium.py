"""Gradient equilibrium: each layer gets the mean, not the sum, of the gradients of the exits above it.

Source: Li et al., ICCV 2019; used by ElasticBERT and COST-EFF. Without it, layer i gets the sum of the gradients of all
exits from i on, so that the gradients of the first layers are larger and vary more. With M exits, counted from 1, the gradient
into the state at exit i is multiplied by 1/(M−i+1) if it comes from exit i, and by (M−i)/(M−i+1) if it comes from the layers
above. The trunk between exits i−1 and i then gets the mean of the gradients of the M−i+1 exits above it. The parameters of
exits and pooler get their full gradients.
"""

from __future__ import annotations

from typing import Any

import torch


class _Scaled(torch.autograd.Function):
    """The identity, with a gradient multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * ctx.factor, None


def branch_and_trunk(state: torch.Tensor, exit_: int, num_exits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Split the state at an exit into a branch and a trunk with scaled gradients.

    Args:
        state: The state at the exit, any shape.
        exit_: The exit, from 0.
        num_exits: M.

    Returns:
        The input of the exit and that of the next layer: both equal `state`, with gradients multiplied by 1/(M−exit) and
        (M−exit−1)/(M−exit).
    """
    above = num_exits - exit_
    return _scaled(state, 1 / above), _scaled(state, (above - 1) / above)


def _scaled(state: torch.Tensor, factor: float) -> torch.Tensor:
    scaled: torch.Tensor = _Scaled.apply(state, factor)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return scaled
