"""DeeBERT (Xin et al., ACL 2020): fine-tune, then freeze the network and train the other exits on it; exits by entropy.

Each exit here is linear on the shared pooler; the original gives each one a pooler of its own.
"""

from __future__ import annotations

import functools

from leebert.config import TrainConfig
from leebert.objective import ExitObjective
from leebert.optim import Fixed
from leebert.stages import Stage, exits_only, finetuning


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """Stage 1: network and last exit. Stage 2: Σ_{m<M} CE_m, all else frozen, so that the last exit stays what it was."""
    last = num_exits - 1
    others = ExitObjective.weighted([float(m != last) for m in range(num_exits)])
    frozen = functools.partial(exits_only, but=last)
    return finetuning(config, num_exits), Stage("exits", others, Fixed(), trains=frozen)
