"""Entropy (DeeBERT; FastBERT divides it by ln K): leave when the exit is certain enough."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class Entropy:
    """A row leaves when −Σ_k p_k ln p_k < threshold · unit (natural logarithm, so at most ln K)."""

    threshold: float
    unit: float = 1.0

    @classmethod
    def normalised(cls, threshold: float, num_classes: int) -> Entropy:
        """FastBERT's uncertainty in [0, 1]: entropy / ln K < threshold."""
        return cls(threshold, math.log(num_classes))

    def measure(self, logits: torch.Tensor, state: None) -> tuple[torch.Tensor, None]:
        return self._nats(logits) / self.unit, None

    def step(self, logits: torch.Tensor, state: None) -> tuple[torch.Tensor, None]:
        return self._nats(logits) < self.threshold * self.unit, None

    @staticmethod
    def _nats(logits: torch.Tensor) -> torch.Tensor:
        log_p = F.log_softmax(logits.float(), dim=-1)
        return -(log_p.exp() * log_p).sum(dim=-1)
