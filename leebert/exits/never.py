"""The full model: every sample runs through all layers to the last exit."""

from __future__ import annotations

import dataclasses

from leebert.exits.arrays import Array, namespace
from leebert.exits.criterion import Criterion


@dataclasses.dataclass(frozen=True)
class Never:
    """No sample exits early."""

    def step(self, logits: Array, state: None) -> tuple[Array, None]:
        """There is no state."""
        xp = namespace(logits)
        return xp.zeros_like(logits[:, 0], dtype=xp.bool), None


CRITERION = Criterion(
    name="never",
    title="never: every sample runs through all layers",
    thresholds="none",
    earliest="M",
    source="the full model",
    make=lambda threshold, patience, num_classes: Never(),
    early=False,
    label="full model",
    colour="#7f7f7f",
)
