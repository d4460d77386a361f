"""Entropy (DeeBERT; FastBERT divides it by ln K): leave when the exit is certain enough."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class Entropy:
    """A row leaves when −Σ_k p_k ln p_k < threshold (natural logarithm, so at most ln K)."""

    threshold: float

    @classmethod
    def normalised(cls, threshold: float, num_classes: int) -> Entropy:
        """FastBERT's uncertainty in [0, 1]: entropy / ln K < threshold."""
        return cls(threshold * math.log(num_classes))

    def step(self, logits: torch.Tensor, state: None) -> tuple[torch.Tensor, None]:
        log_p = F.log_softmax(logits.float(), dim=-1)
        return -(log_p.exp() * log_p).sum(dim=-1) < self.threshold, None
