"""BERT-of-Theseus: a small network grows up inside a large one, whose layers it replaces (Xu et al., 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from leebert.backbone import Layer
from leebert.errors import ConfigError


class Replacing:
    """A successor's `path`, in which each of its layers stands in for a group of predecessor layers.

    Per batch and group, the successor's layer runs with probability `p` and the predecessor's layers run otherwise.
    `p` may be raised while training; at 1, as without this path, only the successor is left. The predecessor's layers
    are frozen here, stay in the mode that they are in (train or eval; in training the original's have dropout too), and
    must be on the successor's device.
    """

    def __init__(self, predecessor: Sequence[nn.Module], p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"the probability of replacing a group lies in [0, 1], not {p}")
        self.predecessor = list(predecessor)
        self.p = p
        for layer in self.predecessor:
            layer.requires_grad_(False)

    def __call__(self, successors: Sequence[Layer]) -> list[Layer]:
        """As many callables as there are successors. Raises ConfigError where the groups are not of one size."""
        size, rest = divmod(len(self.predecessor), len(successors))
        if rest or not size:
            raise ConfigError(
                f"{len(successors)} layers can't stand in for {len(self.predecessor)} in groups of one size"
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
