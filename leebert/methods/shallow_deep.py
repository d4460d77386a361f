"""Shallow-Deep networks (Kaya et al., ICML 2019): all exits jointly, shallow ones' weights grow; maximum probability.

The original has six internal exits at 15 to 90 % of the operations, with weights that grow to .15 to .9: here every
layer has one, whose final weight is its share of the depth. Where no exit is sure the original takes the surest exit's
answer, here the last one's, like every criterion.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from leebert.methods.method import Method

if TYPE_CHECKING:
    import torch

    from leebert.config import TrainConfig
    from leebert.objective import State
    from leebert.record import Record
    from leebert.stages import Stage

#: An exit's weight before it grows.
_START = 0.01


def growing(num_exits: int, progress: float) -> torch.Tensor:
    """Compute weights (M,) at a share of the training: min(m/M, 0.01 + progress · m/M), and 1 for the last exit."""
    import torch

    highest = torch.arange(1, num_exits + 1) / num_exits
    weights = torch.minimum(highest, _START + progress * highest)
    weights[-1] = 1.0
    return weights


def _grown(record: Record, state: State, progress: float) -> State:
    return {"omega": growing(len(state["omega"]), progress).to(state["omega"])}


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """Make one stage on Σ_m τ_m CE_m: shallow exits weigh nearly nothing at first, their share of the depth at its end."""
    from leebert.objective import ExitObjective
    from leebert.optim.fixed import Fixed
    from leebert.stages import Stage

    start = ExitObjective.weighted(growing(num_exits, 0.0).tolist())
    return (Stage("joint", dataclasses.replace(start, moves=_grown), Fixed()),)


METHOD = Method(
    name="shallow-deep",
    title="Shallow-Deep",
    label="Shallow-Deep",
    group="early exit",
    source="Kaya et al., ICML 2019",
    trains="everything, cross-entropies whose weights grow with the epochs",
    exits="confidence",
    cost="1",
    differs=(
        "an exit on every layer, since the tables compare criteria on the same exits; weights by its share of the "
        "depth, which the original's six follow, too; on images exits see the mean over all positions, not a "
        "learnable mix of max and average pooling; where no exit is sure, the last one answers, not the surest"
    ),
    options=frozenset({"gradient_equilibrium"}),
    stages=stages,
    colour="#bfbf0a",
)
