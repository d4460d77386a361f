"""Shallow-Deep networks (Kaya et al., ICML 2019): joint training, growing weights of shallow exits; criterion confidence.

The original has six internal exits at 15 to 90 % of the operations, whose weights grow to 0.15 to 0.9. Here every layer
has an exit, whose final weight is its share of the depth. If no exit is confident, the original takes the most confident
exit's prediction; here the last exit makes the prediction, as under every criterion.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from leebert.methods.method import Method

if TYPE_CHECKING:
    import torch

    from leebert.config import TrainConfig
    from leebert.objective import ObjectiveState
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


def _grown(record: Record, state: ObjectiveState, progress: float) -> ObjectiveState:
    return {"omega": growing(len(state["omega"]), progress).to(state["omega"])}


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """Make one stage on Σ_m τ_m CE_m, with τ_m from near 0 to the exit's share of the depth."""
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
    trains="all parameters, on cross-entropies whose weights grow during training",
    exits="confidence",
    cost="1",
    differs=(
        "an exit on every layer, so that methods compare on the same exits; the original has six; an exit's "
        "weight is its share of the depth, as for the original's six; on images exits use the mean over "
        "positions, not a learned mix of max and average pooling; if no exit is confident, the last exit makes "
        "the prediction, not the most confident one"
    ),
    options=frozenset({"gradient_equilibrium"}),
    stages=stages,
    colour="#bfbf0a",
)
