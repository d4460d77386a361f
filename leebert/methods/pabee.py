"""PABEE (Zhou et al., NeurIPS 2020): joint training with weights that grow with depth; criterion patience."""

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
    trains="all parameters, on cross-entropies weighted by depth: Σ m·CE_m / Σ m",
    exits="patience",
    cost="1",
    differs=(
        "classification only, without the original's regression; samples of a batch exit one by one, where the "
        "original's code waits for the whole batch"
    ),
    options=JOINT,
    stages=stages,
    costs=after_first,
    colour="#c2185b",
)
