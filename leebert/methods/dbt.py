"""Distillation-based training (Phuong and Lampert, ICCV 2019): the last exit is the teacher, at a rising temperature.

L = (1 − α) Σ_m CE_m + α τ² Σ_{m<M} H(p_M^{1/τ}, p_m^{1/τ}), without gradient into the teacher. τ grows by a factor after
each batch on which the tempered teacher's mean confidence is above (1 + 1/K) / 2, the middle between guessing and
certainty. With 100 classes this is nearly the original's bound of one half; with two classes confidence is always at
least one half, so that bound would never stop the growth. The original also multiplies the loss by 10 / M, which has no
effect on Adam, nor on SGD with gradient clipping.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from leebert.methods.method import Method

if TYPE_CHECKING:
    from leebert.config import TrainConfig
    from leebert.objective import ObjectiveState
    from leebert.record import Record
    from leebert.stages import Stage


def _annealed(record: Record, state: ObjectiveState, progress: float, *, factor: float) -> ObjectiveState:
    """Multiply the temperature by `factor` if the tempered teacher is too confident on a batch."""
    import torch

    confidence = torch.softmax(record.logits[-1] / state["temperature"], dim=-1).amax(dim=-1).mean()
    halfway = (1 + 1 / record.logits.shape[-1]) / 2
    return {**state, "temperature": torch.where(confidence > halfway, factor, 1.0) * state["temperature"]}


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
    trains="all parameters; the last exit teaches the others, at a distillation temperature that rises in training",
    exits="confidence",
    cost="1",
    differs=(
        "the temperature rises while the teacher's mean confidence is above the middle between 1/K and 1 (0.505 "
        "at 100 classes, where the original uses 0.5); the original's constant loss factor is omitted, since only "
        "SGD without gradient clipping depends on it"
    ),
    options=frozenset({"alpha", "annealing", "temperature", "gradient_equilibrium"}),
    stages=stages,
    colour="#0abf83",
)
