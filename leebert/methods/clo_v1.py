"""LeeBERT-CLO-v1 (Zhu, ACL 2021, algorithm 1): cross-level optimisation in every step."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from pydantic import Field

from leebert.methods.clo_v2 import CLO, cost_of_cycle
from leebert.methods.common import D2_OPEN, DISTILLATION, JOINT, LEEBERT, SAMPLED, OuterOptions, outer_of
from leebert.methods.method import Method

if TYPE_CHECKING:
    from leebert.optim.contract import Level
    from leebert.record import Batch


class Options(OuterOptions):
    """The outer objective, and where L_B1 at the updated θ comes from."""

    reuse_forward: bool = Field(
        False,
        description="Take L_B1 at the updated θ from the forward pass of θ's next step, on the next batch: a step costs 4/3 "
        "instead of 5/3 (ours). Not with another outer objective.",
    )


@dataclasses.dataclass(frozen=True)
class ReusingCLO:
    """Algorithm 1 with L_B1 at the updated θ from the next step's forward pass, hence on the next batch of D1.

    ω is updated between that forward pass and its backward pass: the first step leaves ω, and the last has no update of ω
    after it. Every update has both losses at the same θ, as in algorithm 1.
    """

    splits_data: bool = True

    def step(self, level: Level, b1: Batch, position: int) -> int:
        if position == 0:
            level.theta_step(b1)
        else:
            (l2,) = level.losses(level.next_d2())
            level.theta_step(b1, before=lambda l1: level.omega_step(at_lr_theta=l1, at_lr_omega=l2))
        return 1


def omega(config: Any) -> CLO | ReusingCLO:
    """Make the step of algorithm 1."""
    outer = outer_of(config, balanced=True)
    return ReusingCLO() if config.own["reuse_forward"] and not outer else CLO(cycle_length=1, outer=outer)


def costs(config: Any) -> list[tuple[int, float]]:
    """Count one stage with two forwards for ω per step, one if L_B1 is reused, or two hypergradients."""
    outer = outer_of(config, balanced=True)
    return [(config.max_epochs, 4 / 3 if config.own["reuse_forward"] and not outer else cost_of_cycle(outer, 1))]


METHOD = Method(
    name="clo-v1",
    title="LeeBERT-CLO-v1",
    label="CLO-v1",
    group="learned weights",
    source=LEEBERT,
    trains="θ on D1, ω on D1 and D2 (eq. 9, algorithm 1)",
    exits="patience",
    cost="5/3",
    differs=D2_OPEN,
    options=DISTILLATION | SAMPLED | JOINT,
    own_options=Options,
    omega=omega,
    costs=costs,
    samples="D1 and D2",
    omega_on_d1=True,
    colour="#56b4e9",
    chart_order=1,
)
