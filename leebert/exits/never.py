"""The full model: every sample runs through all layers to the last exit."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from leebert.exits.criterion import Criterion

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True)
class Never:
    """No sample exits early."""

    def step(self, logits: torch.Tensor, state: None) -> tuple[torch.Tensor, None]:
        """There is no state."""
        import torch

        return torch.zeros_like(logits[:, 0], dtype=torch.bool), None


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
