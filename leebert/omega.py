"""How far the loss weights move: what they travelled in a run, and what λ2 and the number of updates allow at most.

Every method that learns ω starts from weight 1 on every term. While all weights are within :data:`MOVED` of that, its θ
is trained as under uniform weights, and methods that differ only in how ω learns can't be told apart.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from leebert.config import TrainConfig
from leebert.methods import METHODS

if TYPE_CHECKING:
    import torch

#: A weight that is nearer to its start has not moved, and exits whose weights differ by less are weighted alike. Weights
#: drawn from 1 to 50 (a spread of 57 %) change the paper's scores by at most 0.1 points against uniform ones, and the change
#: is linear in small spreads: 5 % make less than 0.01 points (docs/decisions/omega-moves.md).
MOVED = 0.05

#: The change of a weight by a small change of ω, at most: its own term's derivative, and for softmaxes the others' as well.
_BY_OMEGA = {"raw": 1.0, "softplus": 1 - 1 / math.e, "exit_softmax": 2.0, "group_softmax": 2.0}


def learns_omega(algorithm: str) -> bool:
    """Whether a method learns its loss weights, by the table of methods; of others they are fixed."""
    return METHODS[algorithm].learns_omega


def travel(weights: torch.Tensor, start: torch.Tensor, is_distillation: torch.Tensor) -> dict[str, float]:
    """How far loss weights (n,) are from their start, and from each other.

    Args:
        weights: (n,) now.
        start: (n,) before the first step.
        is_distillation: (n,) bool, which terms are distillation's.

    Returns:
        `moved`, the largest change of a weight; `spread`, the largest difference between two weights of one kind
        (cross-entropies, distillation terms).
    """
    weights, start = weights.detach().cpu(), start.detach().cpu()
    kinds = [weights[~is_distillation], weights[is_distillation]]
    spread = max(float(kind.max() - kind.min()) if len(kind) else 0.0 for kind in kinds)
    return {"moved": float((weights - start).abs().max()), "spread": spread}


@dataclasses.dataclass(frozen=True)
class Reach:
    """How far the weights of a run can move at most, about, and the λ2 that would let them move by :data:`MOVED`."""

    weights: float
    lr_omega: float

    @property
    def moves(self) -> bool:
        """Whether the weights can move at all, for the purposes of a comparison."""
        return self.weights >= MOVED


def reach(config: TrainConfig, updates: int, num_classes: int) -> Reach:
    """How far the loss weights can move in a run.

    A step of Adam moves ω by about its rate, λ2, whatever the gradient. A step of SGD moves it by the rate times the
    gradient, which is a loss term: at most about ln K, the cross-entropy of guesses. ω is updated with every step of θ,
    or once in C steps without `omega_in_cycle`; λ2 counts once in C steps, and CLO's λ1 in each.

    Args:
        config: of a method that learns ω (:func:`learns_omega`).
        updates: θ updates of the stage in which ω learns.
        num_classes: K.

    Returns:
        The reach of the weights, and the λ2 that is needed at these updates.
    """
    options = METHODS[config.algorithm].options
    cycle = config.cycle_length if "cycle_length" in options else 1
    on_d2 = max(1, updates // cycle)
    every = max(1, updates) if config.omega_in_cycle else on_d2
    factor = _BY_OMEGA[config.parametrisation]
    if config.omega_optimizer == "adam":
        return Reach(factor * config.lr_omega * every, MOVED / (factor * every))
    gradient = math.log(num_classes)
    by_theta = config.lr_theta * every * gradient if METHODS[config.algorithm].omega_on_d1 else 0.0
    at_rate = on_d2 * gradient
    needed = max(0.0, MOVED / factor - by_theta) / at_rate
    return Reach(factor * (by_theta + config.lr_omega * at_rate), needed)
