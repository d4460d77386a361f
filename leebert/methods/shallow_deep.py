"""Shallow-Deep networks (Kaya et al., ICML 2019): all exits jointly, the shallow ones' weights grow; maximum probability.

The original has six internal exits at 15 to 90 % of the operations, with weights that grow to .15 to .9: here every layer
has one, whose final weight is its share of the depth. Where no exit is sure the original takes the surest exit's answer,
here the last one's, like every criterion.
"""

from __future__ import annotations

import dataclasses

import torch

from leebert.config import TrainConfig
from leebert.objective import ExitObjective, State
from leebert.optim import Fixed
from leebert.record import Record
from leebert.stages import Stage

#: An exit's weight before it grows.
_START = 0.01


@dataclasses.dataclass(frozen=True)
class GrowingWeights(ExitObjective):
    """Σ_{m<M} τ_m CE_m + CE_M with τ_m = min(m/M, 0.01 + progress · m/M), progress being the share of updates done."""

    def after_step(self, record: Record, state: State, progress: float) -> State:
        return {"omega": growing(self.layout.num_exits, progress).to(state["omega"])}


def growing(num_exits: int, progress: float) -> torch.Tensor:
    """The weights at a share of the training, (M,)."""
    highest = torch.arange(1, num_exits + 1) / num_exits
    weights = torch.minimum(highest, _START + progress * highest)
    weights[-1] = 1.0
    return weights


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """One stage, in which the shallow exits are left alone at first and weigh their share of the depth at its end."""
    start = growing(num_exits, 0.0).tolist()
    plain = ExitObjective.weighted(start)
    return (Stage("joint", GrowingWeights(plain.layout, plain.parametrisation, fixed=plain.fixed), Fixed()),)
