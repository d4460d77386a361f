"""How far loss weights move in a run, and the most that λ2 and the number of updates allow.

Every method that learns ω starts with weight 1 for every term. While all weights stay within :data:`MOVED` of 1, θ trains as
with uniform weights, and methods that differ only in the optimiser of ω give the same results.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from leebert.config import TrainConfig
from leebert.methods import METHODS
from leebert.methods.common import outer_of

if TYPE_CHECKING:
    import torch

#: A weight closer to its start counts as not moved, and exits whose weights differ by less count as equally weighted. Weights
#: drawn from 1 to 50 (a spread of 57 %) change the paper's scores by at most 0.1 points against uniform ones. The change is
#: linear in small spreads, so 5 % give less than 0.01 points (docs/decisions/omega-moves.md).
MOVED = 0.05

#: The largest change of a weight per small change of ω: the derivative by its own ω and, for softmaxes, by the others.
_BY_OMEGA = {"raw": 1.0, "softplus": 1 - 1 / math.e, "exit_softmax": 2.0, "group_softmax": 2.0, "exit_teacher": 4.0}


def learns_omega(algorithm: str) -> bool:
    """Whether a method learns its loss weights; in other methods they are fixed."""
    return METHODS[algorithm].learns_omega


def travel(weights: torch.Tensor, start: torch.Tensor, is_distillation: torch.Tensor) -> dict[str, float]:
    """Measure the distances of loss weights from their start and from each other.

    Args:
        weights: (n,) present weights.
        start: (n,) weights before the first step.
        is_distillation: (n,) bool, marks distillation terms.

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
    """An estimate of the largest change of the weights in a run.

    Attributes:
        weights: The largest change.
        lr_omega: The λ2 with which the weights can change by :data:`MOVED`.
    """

    weights: float
    lr_omega: float

    @property
    def moves(self) -> bool:
        """Whether the weights can move by at least :data:`MOVED`."""
        return self.weights >= MOVED


def reach(config: TrainConfig, updates: int, num_classes: int) -> Reach:
    """Estimate how far loss weights can move in a run.

    A step of Adam moves ω by about its rate, whatever the gradient. A step of SGD moves it by the rate times the gradient, a loss
    term of at most about ln K, the cross-entropy of random guesses; a hypergradient has no such bound. ω is updated once in C
    steps of θ and, by CLO with `omega_in_cycle`, also in the others; λ2 applies once in C steps, and CLO's λ1 in each.

    Args:
        config: Options of a method that learns ω (:func:`learns_omega`).
        updates: θ updates of the stage in which ω learns.
        num_classes: K.
    """
    options = METHODS[config.algorithm].options
    cycle = config.cycle_length if "cycle_length" in options else 1
    on_d2 = max(1, updates // cycle)
    on_d1 = METHODS[config.algorithm].omega_on_d1
    weighted = outer_of(config) is None
    every = max(1, updates) if on_d1 and config.omega_in_cycle and weighted else on_d2
    factor = _BY_OMEGA[config.parametrisation]
    if config.omega_optimizer == "adam":
        return Reach(factor * config.lr_omega * every, MOVED / (factor * every))
    by_theta = config.lr_theta * every if on_d1 else 0.0
    if config.omega_optimizer == "adam_each":
        needed = max(0.0, MOVED / factor - by_theta) / on_d2
        return Reach(factor * (by_theta + config.lr_omega * on_d2), needed)
    if not weighted:
        return Reach(math.inf, 0.0)
    gradient = math.log(num_classes)
    by_theta *= gradient
    at_rate = on_d2 * gradient
    needed = max(0.0, MOVED / factor - by_theta) / at_rate
    return Reach(factor * (by_theta + config.lr_omega * at_rate), needed)
