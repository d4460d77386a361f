"""Remove attention heads and inner neurons of encoders: matrices shrink, nothing is masked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from leebert.slim.parts import indices, layer_paths, per_block, take


def prune_heads(encoder: Any, keep: Sequence[Iterable[int]]) -> None:
    """Keep some attention heads of each block, in place.

    Query, key and value lose rows, and the projection after them loses columns; the head size and the scale of attention
    scores stay.

    Args:
        encoder: A Hugging Face encoder.
        keep: For each block (:func:`leebert.slim.parts.blocks`), the heads to keep, from 0, ascending.

    Raises:
        ConfigError: A head does not exist, or a block would have no head.
    """
    count = layer_paths(encoder).heads
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
    """Keep some inner neurons of each block's feed-forward part, in place.

    Args:
        encoder: A Hugging Face encoder.
        keep: For each block (:func:`leebert.slim.parts.blocks`), the neurons to keep, from 0, ascending.

    Raises:
        ConfigError: A neuron does not exist, or a block would have none.
    """
    chosen = [
        (block, indices(neurons, block.neurons, "neuron")) for block, neurons in per_block(encoder, keep, "neuron")
    ]
    for block, neurons in chosen:
        index = torch.tensor(neurons)
        take(block.inner, index, dim=0)
        take(block.outer, index, dim=1)
