"""DeeBERT (Xin et al., ACL 2020): fine-tune, then freeze the network and train the other exits on it; exits by entropy.

Each exit here is linear on the shared pooler; the original gives each one a pooler of its own.
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
    others = ExitObjective.weighted([float(m != last) for m in range(num_exits)])
    trains = functools.partial(exits_only, but=last)
    return finetuning(config, num_exits), Stage("exits", others, Fixed(), trains=trains)


METHOD = Method(
    name="deebert",
    title="DeeBERT",
    label="DeeBERT",
    group="early exit",
    source="Xin et al., ACL 2020",
    trains="the backbone for the last exit; then, frozen, the other exits",
    exits="entropy",
    cost="1, then 1/3",
    differs="linear exits on the shared pooler, not a pooler per exit (for ALBERT those were 7 M parameters)",
    options=frozenset({"first_epochs"}),
    stages=stages,
    costs=frozen,
    colour="#5c9e31",
)
