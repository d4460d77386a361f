"""Distillation-based training (Phuong and Lampert, ICCV 2019): the last exit teaches, at a temperature that rises.

L = (1 − α) Σ_m CE_m + α τ² Σ_{m<M} H(p_M^{1/τ}, p_m^{1/τ}), teachers detached; whenever the tempered teacher is too
sure on average over a batch, τ grows by a factor. Too sure is more than halfway from guessing to certainty: with 100
classes that is the original's one half, which with two classes no teacher could ever fall below. The original also
multiplies the loss by a constant, 10 over the number of exits, which Adam does not see, nor SGD while gradients are
clipped.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from leebert.methods.method import Method

if TYPE_CHECKING:
    from leebert.config import TrainConfig
    from leebert.objective import State
    from leebert.record import Record
    from leebert.stages import Stage


def _annealed(record: Record, state: State, progress: float, *, factor: float) -> State:
    """Multiply the temperature by a factor where the tempered teacher is too sure of a batch."""
    import torch

    sure = torch.softmax(record.logits[-1] / state["temperature"], dim=-1).amax(dim=-1).mean()
    halfway = (1 + 1 / record.logits.shape[-1]) / 2
    return {**state, "temperature": torch.where(sure > halfway, factor, 1.0) * state["temperature"]}


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """Make one stage. Eq. 4's terms come with 1/M each: weight α·M makes them the original's sum."""
    from leebert.losses import TEACHERS
    from leebert.objective import ExitObjective
    from leebert.optim.fixed import Fixed
    from leebert.stages import Stage
    from leebert.weights import PARAMETRISATIONS, Terms

    objective = ExitObjective(
        Terms.of(TEACHERS["last"](num_exits)),
        PARAMETRISATIONS["raw"],
        temperature=config.temperature,
        fixed=(1 - config.alpha,) * num_exits + (config.alpha * num_exits,) * (num_exits - 1),
        moves=functools.partial(_annealed, factor=config.annealing),
        moving_temperature=True,
    )
    return (Stage("joint", objective, Fixed()),)


METHOD = Method(
    name="dbt",
    title="distillation-based training",
    label="DBT",
    group="early exit",
    source="Phuong and Lampert, ICCV 2019",
    trains="everything, the last exit teaches at a temperature that rises",
    exits="confidence",
    cost="1",
    differs=(
        "the temperature rises while the teacher is more than halfway from guessing to certainty (the original's "
        "one half at 100 classes); without the original's constant factor, which only SGD that clips no gradient "
        "would see"
    ),
    options=frozenset({"alpha", "annealing", "temperature", "gradient_equilibrium"}),
    stages=stages,
    colour="#0abf83",
)
