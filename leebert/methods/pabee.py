"""PABEE (Zhou et al., NeurIPS 2020): all exits jointly, deeper ones with more weight; exits by patience."""

from __future__ import annotations

from leebert.config import TrainConfig
from leebert.objective import ExitObjective
from leebert.optim import Fixed
from leebert.stages import Stage, after_finetuning


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """One stage on Σ m·CE_m / Σ m, exits counted from 1 (the paper's eq. 5)."""
    total = num_exits * (num_exits + 1) / 2
    objective = ExitObjective.weighted([(m + 1) / total for m in range(num_exits)])
    return after_finetuning(config, num_exits, Stage("joint", objective, Fixed()))
