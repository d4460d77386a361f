"""Weights that improve a held-out objective without weights, by a hypergradient once in C steps."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from leebert.methods.common import D2_OPEN, DISTILLATION, FIRST, SAMPLED, OuterOptions, outer_of, split_conflict
from leebert.methods.hyper import Hyper
from leebert.methods.method import Method
from leebert.optim.outer import Outer


class Options(OuterOptions):
    """The outer objective and its differences."""

    outer: Outer = Field("ce", description=str(OuterOptions.model_fields["outer"].description))
    one_sided: bool = Field(
        True,
        description="Take the hypergradient from a one-sided difference, one forward pass less than a central one, in float32 "
        "only (ours).",
    )
    averaging: float = Field(
        0.8,
        ge=0,
        lt=1,
        description="Decay of the moving average of the outer objective's gradient by θ, which makes ω's gradient less noisy; 0: none "
        "(ours, measured in docs/results/weights.md). It needs memory for one more vector of θ's size, in checkpoints, too.",
    )


def omega(config: Any) -> Hyper:
    """Make the step along the hypergradient, in cycles of C."""
    return Hyper(outer_of(config), config.cycle_length, config.own["one_sided"], config.own["averaging"])


def costs(config: Any) -> list[tuple[int, float]]:
    """Count one stage with a gradient on D2 and two forward passes once in C steps; one in float32 with one-sided differences.

    `auto` counts as float32.
    """
    extra = 4 if config.own["one_sided"] and config.precision != "bf16" else 5
    return [(config.max_epochs, 1 + extra / (3 * config.cycle_length))]


METHOD = Method(
    name="hyper-v2",
    title="LeeBERT-hyper-v2",
    label="Hypergradient-v2",
    group="learned weights",
    source="one-step hypergradient of an unweighted loss, as in Luketina et al., ICML 2016; beyond the paper",
    trains="θ on D1; in every C-th step, ω on D2, by the gradient of an unweighted loss through θ's update",
    exits="patience",
    cost="1 + 4/(3C), in bf16 1 + 5/(3C)",
    differs=f"not published: an outer objective without ω, updated once in C steps as in CLO-v2; {D2_OPEN}",
    options=DISTILLATION | SAMPLED | FIRST | {"cycle_length"},
    own_options=Options,
    omega=omega,
    conflict=split_conflict,
    costs=costs,
    samples="D1 and D2",
    colour="#ff5252",
    chart_order=4,
)
