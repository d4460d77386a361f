"""Where the families of encoders keep what can be taken out of them: attention, feed-forward part, word embeddings."""

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
    """A family's attribute paths.

    layers: from the encoder to the list of its layers; None where layers are applications of shared weights.
    attention, inputs, output: from a block to its attention, from there to query, key and value, from the block to the
    projection that follows them.
    inner, outer: from a block to the two linear layers of its feed-forward part.
    heads, width: what the family calls the number of heads (in its attention) and the inner width (in its configuration).
    inside: the blocks of which a layer consists.
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
    """The weights of one transformer block: the modules themselves, by what they do."""

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


def places(encoder: nn.Module) -> LayerPaths:
    """The encoder's entry of :data:`LAYER_PATHS`. Raises BackboneError for any other model."""
    kind = getattr(getattr(encoder, "config", None), "model_type", type(encoder).__name__)
    if kind not in LAYER_PATHS:
        raise BackboneError(
            f"a model of type {kind!r} has no layers, heads or neurons that can be removed here; "
            f"this can be done to {', '.join(LAYER_PATHS)}"
        )
    return LAYER_PATHS[kind]


def blocks(encoder: Any) -> list[Block]:
    """An encoder's blocks with weights of their own, in the order of their first use.

    One per layer, but for ALBERT: there a block is shared by many layers (by all, in the published models) and stands
    here once, so that what is done to it is done in every one of them.
    """
    where = places(encoder)
    modules = [block for layer in dict.fromkeys(LayerStack(encoder).layers()) for block in where.inside(layer)]
    return [_block(module, where) for module in modules]


def dense_blocks(encoder: Any) -> list[Block]:
    """As :func:`blocks`, where rows and columns can be taken out. Raises ConfigError for quantised and adapted layers."""
    found = blocks(encoder)
    for block in found:
        for linear in (*block.inputs, block.output, block.inner, block.outer):
            if not isinstance(linear, nn.Linear):
                raise ConfigError(
                    f"heads and neurons can't be cut out of {type(linear).__module__}.{type(linear).__name__}: cut before "
                    "quantising, and merge adapters (PEFT's merge_and_unload) before cutting"
                )
    return found


def _block(module: Any, where: LayerPaths) -> Block:
    attention = module.get_submodule(where.attention)
    return Block(
        attention=attention,
        inputs=tuple(attention.get_submodule(name) for name in where.inputs),
        output=module.get_submodule(where.output),
        inner=module.get_submodule(where.inner),
        outer=module.get_submodule(where.outer),
    )


def indices(keep: Iterable[int], count: int, what: str) -> list[int]:
    """Which of `count` things stay, checked: in ascending order, at least one, none twice. Raises ConfigError."""
    kept = [operator.index(i) for i in keep]
    if not kept:
        raise ConfigError(f"no {what} would be left: keep at least one of {count}")
    if outside := [i for i in kept if not 0 <= i < count]:
        raise ConfigError(f"there is no {what} {outside[0]}: there are {count}, numbered from 0")
    if kept != sorted(set(kept)):
        raise ConfigError(f"{what}s to keep are given in ascending order and once each, not as {kept}")
    return kept


def per_block(encoder: Any, keep: Sequence[Iterable[int]], what: str) -> list[tuple[Block, Iterable[int]]]:
    """An encoder's blocks, each with its entry of `keep`. Raises ConfigError where there are not as many entries."""
    found = dense_blocks(encoder)
    if len(keep) != len(found):
        raise ConfigError(
            f"{what}s to keep are given for {len(keep)} blocks; this encoder has {len(found)} with weights of their own"
        )
    return list(zip(found, keep, strict=True))


@torch.no_grad()
def take(linear: nn.Linear, index: torch.Tensor, dim: int) -> None:
    """Keep some outputs (`dim` 0) or inputs (`dim` 1) of a linear layer, in place: its hooks and its dtype stay."""
    index = index.to(linear.weight.device)
    learns = linear.weight.requires_grad
    linear.weight = nn.Parameter(linear.weight.index_select(dim, index), learns)
    if dim == 1:
        linear.in_features = len(index)
        return
    linear.out_features = len(index)
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.index_select(0, index), learns)
