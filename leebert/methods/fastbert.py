"""FastBERT (Liu et al., ACL 2020) as in Zhu (ACL 2021): linear exits, trained jointly; the last exit is the teacher.

`two_stage` selects the original recipe: fine-tune, then train the exits on a frozen network, without labels.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

from leebert.methods.common import JOINT, OWN_TEACHERS, after_first, frozen
from leebert.methods.method import Method

if TYPE_CHECKING:
    from leebert.config import TrainConfig
    from leebert.stages import Stage


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """Make one stage on eqs. 1 and 4, T(m) = {M}; or fine-tuning, and one on Σ_{m<M} KL(p_M ‖ p_m) alone at 10 · λ1."""
    from leebert.objective import ExitObjective
    from leebert.optim.fixed import Fixed
    from leebert.stages import Stage, after_finetuning, exits_only, finetuning
    from leebert.weights import PARAMETRISATIONS

    if not config.two_stage:
        return after_finetuning(config, num_exits, Stage("joint", ExitObjective.of(config, num_exits), Fixed()))
    last = num_exits - 1
    # Eq. 4's terms come with 1/M each: weight M makes them the original's sum.
    objective = dataclasses.replace(
        ExitObjective.of(config.model_copy(update={"distillation": "kl", "detach_teacher": True}), num_exits),
        parametrisation=PARAMETRISATIONS["raw"],
        fixed=(0.0,) * num_exits + (float(num_exits),) * last,
    )
    trains = functools.partial(exits_only, but=last)
    exits = Stage("exits", objective, Fixed(), trains=trains, lr_theta=10 * config.lr_theta)
    return finetuning(config, num_exits), exits


def costs(config: TrainConfig) -> list[tuple[int, float]]:
    """Count one stage, or those of the original recipe."""
    return frozen(config) if config.two_stage else after_first(config)


METHOD = Method(
    name="fastbert",
    title="FastBERT",
    label="FastBERT",
    group="early exit",
    source="Liu et al., ACL 2020; as in Zhu, ACL 2021",
    trains="all parameters; the last exit teaches the others",
    exits="patience",
    cost="1",
    differs=(
        "linear exits, trained jointly, as in Zhu (2021); `two_stage` is the original recipe: fine-tuning, then "
        "the exits on a frozen backbone by KL to the last exit; the original's exit criterion is entropy / ln K "
        "(`normalised_entropy`)"
    ),
    options=OWN_TEACHERS | JOINT | {"two_stage"},
    stages=stages,
    costs=costs,
    teachers="last",
    colour="#785f55",
)
