"""Distillation-based training (Phuong and Lampert, ICCV 2019): the last exit teaches, at a temperature that rises.

L = (1 − α) Σ_m CE_m + α τ² Σ_{m<M} H(p_M^{1/τ}, p_m^{1/τ}), teachers detached; whenever the tempered teacher is too
sure on average over a batch, τ grows by a factor. Too sure is more than halfway from guessing to certainty: with 100
classes that is the original's one half, which with two classes no teacher could ever fall below. The original also
multiplies the loss by a constant, 10 over the number of exits, which Adam does not see, nor SGD while gradients are clipped.
"""

from __future__ import annotations

import dataclasses

import torch

from leebert.config import TrainConfig
from leebert.losses import TEACHERS
from leebert.objective import ExitObjective, State
from leebert.optim import Fixed
from leebert.record import Record
from leebert.stages import Stage
from leebert.weights import PARAMETRISATIONS, Terms


@dataclasses.dataclass(frozen=True)
class AnnealedDistillation(ExitObjective):
    """The weighted objective with fixed weights and a temperature that is part of the state."""

    annealing: float = 1.05

    def initial(self, generator: torch.Generator) -> State:
        return {**super().initial(generator), "temperature": torch.tensor(self.temperature)}

    def tau(self, state: State) -> float | torch.Tensor:
        return state["temperature"]

    def after_step(self, record: Record, state: State, progress: float) -> State:
        sure = torch.softmax(record.logits[-1] / state["temperature"], dim=-1).amax(dim=-1).mean()
        halfway = (1 + 1 / record.logits.shape[-1]) / 2
        return {**state, "temperature": torch.where(sure > halfway, self.annealing, 1.0) * state["temperature"]}


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """One stage. Eq. 4's terms come with 1/M each: weight α·M makes them the original's sum."""
    objective = AnnealedDistillation(
        Terms.of(TEACHERS["last"](num_exits)),
        PARAMETRISATIONS["raw"],
        temperature=config.temperature,
        fixed=(1 - config.alpha,) * num_exits + (config.alpha * num_exits,) * (num_exits - 1),
        annealing=config.annealing,
    )
    return (Stage("joint", objective, Fixed()),)
