"""PABEE (Zhou et al., NeurIPS 2020): all exits jointly, deeper ones with more weight; exits by patience."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leebert.methods.common import JOINT, after_first
from leebert.methods.method import Method

if TYPE_CHECKING:
    from leebert.config import TrainConfig
    from leebert.stages import Stage


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """Make one stage on Σ m·CE_m / Σ m, exits counted from 1 (the paper's eq. 5)."""
    from leebert.objective import ExitObjective
    from leebert.optim.fixed import Fixed
    from leebert.stages import Stage, after_finetuning

    total = num_exits * (num_exits + 1) / 2
    objective = ExitObjective.weighted([(m + 1) / total for m in range(num_exits)])
    return after_finetuning(config, num_exits, Stage("joint", objective, Fixed()))


METHOD = Method(
    name="pabee",
    title="PABEE",
    label="PABEE",
    group="early exit",
    source="Zhou et al., NeurIPS 2020",
    trains="everything, cross-entropies weighted by their layer, Σ m·CE_m / Σ m",
    exits="patience",
    cost="1",
    differs=(
        "classification only, since the tasks have classes: the original's regression is left out; rows leave one "
        "by one in a batch, where the original's code waits for all"
    ),
    options=JOINT,
    stages=stages,
    costs=after_first,
    colour="#c2185b",
)
