"""Image preprocessing: normalisation, and random crops and flips in training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

#: Black pixels put around an image before it is cropped to its size again (He et al. 2015, section 4.2).
PADDING = 4


def augment(images: torch.Tensor, padding: int = PADDING) -> torch.Tensor:
    """Pad images with black, crop them at random to their size, and flip half of them at random.

    Args:
        images: (B, S, S, C).
        padding: Pixels on each side.

    Returns:
        (B, S, S, C). Random numbers come from torch's generator of the images' device.
    """
    b, size, _, _ = images.shape
    device = images.device
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    top, offset = torch.randint(2 * padding + 1, (2, b, 1), device=device)
    mirrored = torch.randint(2, (b, 1), device=device, dtype=torch.bool)
    steps = torch.arange(size, device=device)
    rows = top + steps  # (B, S)
    columns = offset + torch.where(mirrored, steps.flip(0), steps)
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
