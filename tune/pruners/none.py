"""No pruning: every configuration completes all runs, as comparisons of methods need."""

from __future__ import annotations

import dataclasses

from tune.space.plugins import PrunerPlugin
from tune.store.history import History


@dataclasses.dataclass(frozen=True)
class NoPruner:
    """Continues every configuration."""

    def decide(self, history: History, config_id: str, cell: tuple[int, int], epoch: int) -> bool:
        return True


PRUNER = PrunerPlugin(
    name="none",
    title="never; the default, because comparisons of methods need all configurations",
    source="ours",
    make=lambda spec, options: NoPruner(),
    prunes=False,
)
