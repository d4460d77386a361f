"""Paths of the removable parts in each family of encoders: layers, attention, feed-forward part."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from leebert.backbone import LayerStack
from leebert.errors import BackboneError, ConfigError


@dataclasses.dataclass(frozen=True)
class LayerPaths:
    """Attribute paths of a family of encoders.

    Attributes:
        layers: From the encoder to the list of layers; None if layers share weights (ALBERT).
        attention: From a block to its attention.
        inputs: From the attention to query, key and value.
        output: From a block to the projection after attention.
        inner: From a block to the first linear layer of the feed-forward part.
        outer: From a block to the second linear layer.
        heads: The attention's attribute with the number of heads.
        width: The configuration's attribute with the inner width.
        inside: Returns the blocks of a layer.
    """

    layers: str | None = "encoder.layer"
    attention: str = "attention.self"
    inputs: tuple[str, str, str] = ("query", "key", "value")
    output: str = "attention.output.dense"
    inner: str = "intermediate.dense"
    outer: str = "output.dense"
    heads: str = "num_attention_heads"
    width: str = "intermediate_size"
    inside: Callable[[Any], Iterable[nn.Module]] = lambda layer: (layer,)


_BERT = LayerPaths()

LAYER_PATHS: dict[str, LayerPaths] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    "albert": LayerPaths(
        layers=None, attention="attention", output="attention.dense", inner="ffn", outer="ffn_output",
        inside=lambda group: group.albert_layers,
    ),
    "distilbert": LayerPaths(
        layers="transformer.layer", attention="attention", inputs=("q_lin", "k_lin", "v_lin"),
        output="attention.out_lin", inner="ffn.lin1", outer="ffn.lin2", heads="n_heads", width="hidden_dim",
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Block:
    """The modules of one transformer block, by function."""

    attention: Any
    inputs: tuple[nn.Linear, ...]  # query, key, value: H → heads · d
    output: nn.Linear  # heads · d → H
    inner: nn.Linear  # H → neurons
    outer: nn.Linear  # neurons → H

    @property
    def head_size(self) -> int:
        """d, the width of one head."""
        return int(self.attention.attention_head_size)

    @property
    def heads(self) -> int:
        return self.output.in_features // self.head_size

    @property
    def neurons(self) -> int:
        return self.inner.out_features


def layer_paths(encoder: nn.Module) -> LayerPaths:
    """Look up an encoder's entry in :data:`LAYER_PATHS`. Raises BackboneError for other models."""
    kind = getattr(getattr(encoder, "config", None), "model_type", type(encoder).__name__)
    if kind not in LAYER_PATHS:
        raise BackboneError(
            f"can't remove layers, heads or neurons from a model of type {kind!r}; supported types: "
            f"{', '.join(LAYER_PATHS)}"
        )
    return LAYER_PATHS[kind]


def blocks(encoder: Any) -> list[Block]:
    """Return an encoder's distinct blocks, in the order of their first use.

    There is one block per layer, except in ALBERT, whose layers share blocks (all layers share one block in the published
    models): a change of a block changes all layers that use it.
    """
    paths = layer_paths(encoder)
    modules = [block for layer in dict.fromkeys(LayerStack(encoder).layers()) for block in paths.inside(layer)]
    return [_block(module, paths) for module in modules]


def dense_blocks(encoder: Any) -> list[Block]:
    """Return :func:`blocks`, checked to have plain linear layers. Raises ConfigError for quantised or adapted layers."""
    all_blocks = blocks(encoder)
    for block in all_blocks:
        for linear in (*block.inputs, block.output, block.inner, block.outer):
            if not isinstance(linear, nn.Linear):
                raise ConfigError(
                    f"can't remove heads or neurons from {type(linear).__module__}.{type(linear).__name__}: prune before "
                    "quantising, and merge adapters (PEFT's merge_and_unload) before pruning"
                )
    return all_blocks


def _block(module: Any, paths: LayerPaths) -> Block:
    attention = module.get_submodule(paths.attention)
    return Block(
        attention=attention,
        inputs=tuple(attention.get_submodule(name) for name in paths.inputs),
        output=module.get_submodule(paths.output),
        inner=module.get_submodule(paths.inner),
        outer=module.get_submodule(paths.outer),
    )


def indices(keep: Iterable[int], count: int, part: str) -> list[int]:
    """Check the indices of parts to keep.

    Args:
        keep: Indices from 0, ascending, each once.
        count: Number of parts.
        part: Name of a part, for messages.

    Raises:
        ConfigError: No index, an index out of range, or a wrong order.
    """
    chosen = [operator.index(i) for i in keep]
    if not chosen:
        raise ConfigError(f"no {part} would remain: keep at least one of {count}")
    if outside := [i for i in chosen if not 0 <= i < count]:
        raise ConfigError(f"no {part} {outside[0]}: there are {count}, numbered from 0")
    if chosen != sorted(set(chosen)):
        raise ConfigError(f"{part}s to keep must be in ascending order without duplicates, not {chosen}")
    return chosen


def per_block(encoder: Any, keep: Sequence[Iterable[int]], part: str) -> list[tuple[Block, Iterable[int]]]:
    """Pair an encoder's blocks with the parts to keep in each.

    Args:
        encoder: The encoder.
        keep: For each distinct block, the indices of its parts to keep.
        part: Name of a part in messages, such as `head`.

    Returns:
        Each block with its indices.

    Raises:
        ConfigError: The numbers of blocks and entries differ.
    """
    all_blocks = dense_blocks(encoder)
    if len(keep) != len(all_blocks):
        raise ConfigError(
            f"{part}s to keep are given for {len(keep)} blocks, but this encoder has {len(all_blocks)} distinct blocks"
        )
    return list(zip(all_blocks, keep, strict=True))


@torch.no_grad()
def take(linear: nn.Linear, index: torch.Tensor, dim: int) -> None:
    """Keep some outputs or inputs of a linear layer, in place; hooks and dtype stay.

    Args:
        linear: The layer, H_in → H_out.
        index: Indices of the outputs or inputs to keep, from 0.
        dim: 0: outputs; 1: inputs.
    """
    index = index.to(linear.weight.device)
    learns = linear.weight.requires_grad
    linear.weight = nn.Parameter(linear.weight.index_select(dim, index), learns)
    if dim == 1:
        linear.in_features = len(index)
        return
    linear.out_features = len(index)
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.index_select(0, index), learns)
