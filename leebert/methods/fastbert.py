"""FastBERT (Liu et al., ACL 2020) as Zhu (ACL 2021) runs it: linear exits, trained jointly, the last one teaches; patience.

The original fine-tunes first and then trains the exits alone, on a frozen network, without labels: `two_stage`.
"""

from __future__ import annotations

import dataclasses
import functools

from leebert.config import TrainConfig
from leebert.objective import ExitObjective
from leebert.optim import Fixed
from leebert.stages import Stage, after_finetuning, exits_only, finetuning
from leebert.weights import PARAMETRISATIONS


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """One stage on eqs. 1 and 4 with T(m) = {M}; or fine-tuning, and one on Σ_{m<M} KL(p_M ‖ p_m) alone at 10 · λ1."""
    if not config.two_stage:
        return after_finetuning(config, num_exits, Stage("joint", ExitObjective.of(config, num_exits), Fixed()))
    last = num_exits - 1
    # Eq. 4's terms come with 1/M each: weight M makes them the original's sum.
    objective = dataclasses.replace(
        ExitObjective.of(config.model_copy(update={"distillation": "kl", "detach_teacher": True}), num_exits),
        parametrisation=PARAMETRISATIONS["raw"],
        fixed=(0.0,) * num_exits + (float(num_exits),) * last,
    )
    frozen = functools.partial(exits_only, but=last)
    return finetuning(config, num_exits), Stage(
        "exits", objective, Fixed(), trains=frozen, lr_theta=10 * config.lr_theta
    )
