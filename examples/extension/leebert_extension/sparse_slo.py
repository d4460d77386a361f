"""Sparse SLO: single-level optimisation with its own update of the loss weights, once every few steps."""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import Field

from leebert.config import Frozen
from leebert.methods import Method
from leebert.methods.common import DISTILLATION, JOINT, OMEGA


class Options(Frozen):
    """The method's options beside those of `TrainConfig`."""

    every: int = Field(2, ge=1, le=8, description="Steps of θ per step of ω.")


@dataclasses.dataclass(frozen=True)
class SparseSLO:
    """Update θ on every batch, and ω on the first of every `every` batches."""

    every: int
    splits_data: bool = False

    def step(self, level: Any, b1: Any, position: int) -> int:
        """Take one step; returns the position of the next one in the cycle."""
        losses = level.theta_step(b1)
        if position == 0:
            level.omega_step(at_lr_omega=losses, rule=sign_of_mean)
        return (position + 1) % self.every


def sign_of_mean(omega: Any, gradient: Any, rate: float, memory: dict[str, Any]) -> Any:
    """Move each element of ω by λ2 against the sign of its mean gradient (Signum, Bernstein et al., ICML 2018)."""
    memory["mean"] = 0.9 * memory.get("mean", 0) + 0.1 * gradient
    return omega - rate * memory["mean"].sign()


def omega(config: Any) -> SparseSLO:
    """Make the optimiser of ω of a training configuration."""
    return SparseSLO(config.own["every"])


METHOD = Method(
    name="sparse-slo",
    title="SLO with one ω update every `every` steps",
    label="Sparse SLO",
    group="learned weights",
    source="this example",
    trains="θ on every batch, ω on every `every`-th batch",
    exits="ratio",
    cost="1",
    differs="not published",
    options=DISTILLATION | OMEGA - {"omega_optimizer"} | JOINT,  # which its update does not use
    own_options=Options,
    omega=omega,
    colour="#aa3377",
)
