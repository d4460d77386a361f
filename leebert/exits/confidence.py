"""Maximum probability (Shallow-Deep, RightTool): leave when the exit is sure enough of its class."""

from __future__ import annotations

import dataclasses

import torch
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class Confidence:
    """A row leaves when max_k p_k ≥ threshold."""

    threshold: float

    def measure(self, logits: torch.Tensor, state: None) -> tuple[torch.Tensor, None]:
        return F.softmax(logits.float(), dim=-1).amax(dim=-1), None

    def step(self, logits: torch.Tensor, state: None) -> tuple[torch.Tensor, None]:
        return self.measure(logits, state)[0] >= self.threshold, None
