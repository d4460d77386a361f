"""Encoders with fewer attention heads and fewer inner neurons: smaller matrices, not masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from leebert.slim.parts import indices, per_block, places, take


def prune_heads(encoder: Any, keep: Sequence[Iterable[int]]) -> None:
    """Keep some attention heads of each block (see :func:`leebert.slim.parts.blocks`), numbered from 0, in place.

    Query, key and value lose rows and the projection after them columns; a head's size and the scale of its products
    stay. Raises ConfigError for heads that there are not, and where a block would have none.
    """
    count = places(encoder).heads
    chosen = [
        (block, indices(heads, block.heads, "head")) for block, heads in per_block(encoder, keep, "head")
    ]  # all are checked before one is changed
    for block, heads in chosen:
        d = block.head_size
        columns = (torch.tensor(heads).unsqueeze(1) * d + torch.arange(d)).flatten()
        for linear in block.inputs:
            take(linear, columns, dim=0)
        take(block.output, columns, dim=1)
        setattr(block.attention, count, len(heads))
        if hasattr(block.attention, "all_head_size"):
            block.attention.all_head_size = len(columns)


def prune_neurons(encoder: Any, keep: Sequence[Iterable[int]]) -> None:
    """Keep some inner neurons of each block's feed-forward part, numbered from 0, in place. Raises ConfigError."""
    chosen = [
        (block, indices(neurons, block.neurons, "neuron")) for block, neurons in per_block(encoder, keep, "neuron")
    ]
    for block, neurons in chosen:
        index = torch.tensor(neurons)
        take(block.inner, index, dim=0)
        take(block.outer, index, dim=1)
