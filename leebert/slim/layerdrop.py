"""LayerDrop: layers that are skipped at random in training (Fan et al., 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from leebert.backbone import Layer


class LayerDrop:
    """A model's `path` in which each layer is skipped with probability p, drawn once per layer and batch.

    The draws are torch's, so that its seed fixes them. The layers that run are not scaled, and an exit after a skipped
    layer sees what the layer before left.
    """

    def __init__(self, p: float) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"the probability of skipping a layer lies in [0, 1), not {p}")
        self.p = p

    def __call__(self, layers: Sequence[Layer]) -> list[Layer]:
        skipped = (torch.rand(len(layers)) < self.p).tolist()
        return [_skip if skip else layer for layer, skip in zip(layers, skipped, strict=True)]


def _skip(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return states
