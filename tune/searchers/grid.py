"""Every configuration of the grid, in its fixed order."""

from __future__ import annotations

import dataclasses
from typing import Any

from tune.history import History
from tune.space import SweepSpec, config_id


@dataclasses.dataclass(frozen=True)
class GridSearcher:
    """The first configuration of :meth:`SweepSpec.configurations` that hasn't been suggested."""

    spec: SweepSpec

    def suggest(self, history: History) -> dict[str, Any] | None:
        suggested = {configuration.id for configuration in history}
        return next((v for v in self.spec.configurations() if config_id(v) not in suggested), None)
