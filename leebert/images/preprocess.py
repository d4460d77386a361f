"""From bytes of a picture to what a network takes: normalisation, and in training random crops and flips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

#: Black pixels put around an image before it is cropped to its size again (He et al. 2015, section 4.2).
PADDING = 4


def augment(images: torch.Tensor, padding: int = PADDING) -> torch.Tensor:
    """Each image cropped at random from itself with a black border, and mirrored every second time; (B, S, S, C).

    Random numbers come from torch's generator for the images' device, so that `torch.manual_seed` fixes them.
    """
    b, size, _, _ = images.shape
    device = images.device
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    top, left = torch.randint(2 * padding + 1, (2, b, 1), device=device)
    mirrored = torch.randint(2, (b, 1), device=device, dtype=torch.bool)
    steps = torch.arange(size, device=device)
    rows = top + steps  # (B, S)
    columns = left + torch.where(mirrored, steps.flip(0), steps)
    return padded[torch.arange(b, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]


class Preprocess(nn.Module):
    """(B, S, S, 3) uint8 → (B, 3, S, S) float32 of mean 0 and deviation 1 per colour; augmented in training mode."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            images = augment(images)
        return ((images / 255 - self.mean) / self.std).permute(0, 3, 1, 2)
