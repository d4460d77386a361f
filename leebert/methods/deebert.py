"""DeeBERT (Xin et al., ACL 2020): fine-tune, freeze the network, then train the other exits; criterion entropy.

Exits are linear on the shared pooler; the original has one pooler per exit.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from leebert.methods.common import frozen
from leebert.methods.method import Method

if TYPE_CHECKING:
    from leebert.config import TrainConfig
    from leebert.stages import Stage


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """Make stage 1, network and last exit, and stage 2: Σ_{m<M} CE_m, all else frozen, so that the last exit stays."""
    from leebert.objective import ExitObjective
    from leebert.optim.fixed import Fixed
    from leebert.stages import Stage, exits_only, finetuning

    last = num_exits - 1
    objective = ExitObjective.weighted([float(m != last) for m in range(num_exits)])
    trains = functools.partial(exits_only, but=last)
    return finetuning(config, num_exits), Stage("exits", objective, Fixed(), trains=trains)


METHOD = Method(
    name="deebert",
    title="DeeBERT",
    label="DeeBERT",
    group="early exit",
    source="Xin et al., ACL 2020",
    trains="backbone and last exit; then the other exits on the frozen backbone",
    exits="entropy",
    cost="1, then 1/3",
    differs=("exits are linear on the shared pooler; the original has one pooler per exit (7 M parameters for ALBERT)"),
    options=frozenset({"first_epochs"}),
    stages=stages,
    costs=frozen,
    colour="#5c9e31",
)
