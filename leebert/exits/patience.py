"""Patience (PABEE, section 2.3): leave when p exits in a row agree with the one before them."""

from __future__ import annotations

import dataclasses

import torch


@dataclasses.dataclass(frozen=True)
class Patience:
    """A counter starts at 0; from the second exit on it grows by 1 when the predicted class equals the previous
    exit's, else falls to 0; the row leaves when it reaches `patience`, so at exit p + 1 at the earliest.
    """

    patience: int

    def step(
        self, logits: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        predicted = logits.argmax(dim=-1)  # (B,)
        if state is None:
            counter = torch.zeros_like(predicted)
        else:
            previous, counter = state
            counter = torch.where(predicted == previous, counter + 1, 0)
        return counter >= self.patience, (predicted, counter)
