"""Patience and certainty together (PCEE-BERT): leave when p exits in a row are certain enough."""

from __future__ import annotations

import dataclasses

import torch

from leebert.exits.entropy import Entropy


@dataclasses.dataclass(frozen=True)
class PCEE:
    """A counter starts at 0 and grows by 1 at each exit whose entropy / ln K is below the threshold, else falls to 0; the
    row leaves when it reaches `patience`, so at exit p at the earliest. At patience 1 this is the normalised entropy.

    That exit answers; the authors' averaging of the p exits is off in their experiments and left out.
    """

    entropy: Entropy
    patience: int

    def measure(self, logits: torch.Tensor, state: None) -> tuple[torch.Tensor, None]:
        return self.entropy.measure(logits, state)

    def step(self, logits: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        certain, _ = self.entropy.step(logits, None)
        counter = torch.zeros_like(certain, dtype=torch.long) if state is None else state
        counter = torch.where(certain, counter + 1, 0)
        return counter >= self.patience, counter
