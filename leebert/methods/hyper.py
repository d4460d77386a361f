"""Bi-level optimisation by the exact hypergradient, which includes the effect of ω on θ's step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from leebert.methods.common import (
    D2_OPEN,
    DISTILLATION,
    FIRST,
    SAMPLED,
    OuterOptions,
    constant,
    outer_of,
    split_conflict,
)
from leebert.methods.method import Method
from leebert.optim.hypergradient import effect_of_weights
from leebert.optim.outer import OuterObjective

if TYPE_CHECKING:
    import torch

    from leebert.optim.contract import Level
    from leebert.record import Batch


@dataclasses.dataclass(frozen=True)
class Hyper:
    """BLO with the gradient of ω ↦ O(θ'(ω), ω), where θ' is θ after its step on B1 (:mod:`leebert.optim.hypergradient`).

    θ takes the same steps as under BLO. With 1 unit for a forward and 2 for a backward pass, a step with ω costs 8: 3 for θ, 3
    for the gradient of O at θ', and 2 for the perturbed forward passes, or 1 with one-sided differences.

    Attributes:
        outer: O on B2; None: L_B2(θ', ω), which also depends on ω directly.
        cycle_length: ω is updated in every C-th step; the other steps are plain ones.
        one_sided: Whether differences are one-sided.
        averaging: Decay of a moving average of the gradients of O. Each gradient of ω is a product of two noisy vectors of θ's
            size; an average on one side takes away part of the product of their noises.
    """

    outer: OuterObjective | None = None
    cycle_length: int = 1
    one_sided: bool = False
    averaging: float = 0.0
    splits_data: bool = True

    def step(self, level: Level, b1: Batch, position: int) -> int:
        if position + 1 < self.cycle_length:
            level.theta_step(b1)
            return position + 1
        taken = level.look_ahead(b1)
        v: Sequence[torch.Tensor]
        direct, v = level.gradient(level.next_d2(), self.outer)
        if self.averaging:
            v = level.moving_average(v, self.averaging)
        d = taken.pullback(v)
        del v  # as large as θ
        through = effect_of_weights(taken, d, one_sided=self.one_sided)
        level.omega_step(at_lr_omega=through if self.outer else direct + through)
        return 0


def omega(config: Any) -> Hyper:
    """Make the step along the hypergradient."""
    return Hyper(outer_of(config))


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
    own_options=OuterOptions,
    omega=omega,
    conflict=split_conflict,
    costs=functools.partial(constant, cost=8 / 3),
    samples="D1 and D2",
    colour="#be2d1e",
    chart_order=4,
)
