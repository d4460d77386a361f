"""BERT-of-Theseus: train a small network by replacing groups of layers of a large one (Xu et al., 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from leebert.backbone import Layer
from leebert.errors import ConfigError


class Replacing:
    """A successor's `path`, in which each of its layers can replace a group of predecessor layers.

    Per batch and group, the successor's layer runs with probability `p`, else the predecessor's layers. Training can raise
    `p`; at 1 only the successor runs. The predecessor's layers are frozen and keep their mode (in the original they train
    with dropout).

    Args:
        predecessor: Layers of the large network, on the successor's device.
        p: Probability of the successor's layer, in [0, 1].

    Raises:
        ValueError: p is out of range.
    """

    def __init__(self, predecessor: Sequence[nn.Module], p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"the probability of replacing a group must be in [0, 1], not {p}")
        self.predecessor = list(predecessor)
        self.p = p
        for layer in self.predecessor:
            layer.requires_grad_(False)

    def __call__(self, successors: Sequence[Layer]) -> list[Layer]:
        """Return one callable per successor layer. Raises ConfigError if the groups can't be of equal size."""
        size, remainder = divmod(len(self.predecessor), len(successors))
        if remainder or not size:
            raise ConfigError(
                f"{len(successors)} layers can't replace {len(self.predecessor)} layers in groups of equal size"
            )
        replaced = (torch.rand(len(successors)) < self.p).tolist()
        groups = [self.predecessor[i * size : (i + 1) * size] for i in range(len(successors))]
        return [
            successor if new else _in_turn(group)
            for successor, group, new in zip(successors, groups, replaced, strict=True)
        ]


def _in_turn(layers: Sequence[Layer]) -> Layer:
    def run(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        for layer in layers:
            states = layer(states, mask)
        return states

    return run
