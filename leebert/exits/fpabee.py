"""Flexible patience (F-PABEE): leave when the distribution has hardly changed p times in a row."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class FPABEE:
    """A counter starts at 0; from the second exit on it grows by 1 when the Jensen-Shannon divergence to the previous exit's
    distribution is below the threshold, else falls to 0; the row leaves when it reaches `patience`, so at exit p + 1 at the
    earliest.

    The paper finds this divergence the best of those it tries. Ours is the definition, in nats, at most ln 2; the published
    code leaves out the entropies of the two, so that its thresholds are others.
    """

    threshold: float
    patience: int

    def measure(self, logits: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) divergences from the previous exit, whose (B, K) log-probabilities are the state; infinite at the first exit."""
        log_p = F.log_softmax(logits.float(), dim=-1)
        if state is None:
            return torch.full_like(log_p[:, 0], math.inf), log_p
        log_middle = torch.logaddexp(log_p, state) - math.log(2)
        both = log_p.exp() * (log_p - log_middle) + state.exp() * (state - log_middle)
        # Rounding may put it a little outside: below 0 a threshold of 0 would let rows go.
        return (both.sum(dim=-1) / 2).clamp(0.0, math.log(2)), log_p

    def step(
        self, logits: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        previous, counter = state if state is not None else (None, torch.zeros_like(logits[:, 0], dtype=torch.float32))
        divergence, log_p = self.measure(logits, previous)
        counter = torch.where(divergence < self.threshold, counter + 1, 0)
        return counter >= self.patience, (log_p, counter)
