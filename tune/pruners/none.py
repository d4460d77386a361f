"""Nothing is pruned: every configuration is trained on all its cells, as a comparison of algorithms needs."""

from __future__ import annotations

import dataclasses

from tune.space.parts import PrunerRow
from tune.store.history import History


@dataclasses.dataclass(frozen=True)
class NoPruner:
    """Always goes on."""

    def decide(self, history: History, config_id: str, cell: tuple[int, int], epoch: int) -> bool:
        return True


PRUNER = PrunerRow(
    name="none",
    title="never; the default, because comparisons of methods need all configurations",
    source="ours",
    make=lambda spec, options: NoPruner(),
    prunes=False,
)
