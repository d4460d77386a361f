"""LayerDrop: skip layers at random in training (Fan et al., 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from leebert.backbone import Layer


class LayerDrop:
    """A model's `path` that skips each layer with probability p, drawn once per layer and batch.

    Draws come from torch's generator. Layers that run are not rescaled. The exit after a skipped layer reads the output of
    the layer before.

    Args:
        p: Probability of skipping a layer, in [0, 1).

    Raises:
        ValueError: p is out of range.
    """

    def __init__(self, p: float) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"the probability of skipping a layer must be in [0, 1), not {p}")
        self.p = p

    def __call__(self, layers: Sequence[Layer]) -> list[Layer]:
        skipped = (torch.rand(len(layers)) < self.p).tolist()
        return [_skip if skip else layer for layer, skip in zip(layers, skipped, strict=True)]


def _skip(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return states
