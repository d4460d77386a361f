"""Encoders as they are traced: attention as one operator of ONNX Runtime, and linear layers as products.

A linear layer's weight is stored transposed, (H_in, H_out), as the products of ONNX read it. So each weight in a graph has
the name of its parameter.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from leebert.backbone import LayerStack
from leebert.slim.parts import Block, blocks


class Product(nn.Module):
    """A linear layer as x @ weight + bias.

    Args:
        linear: The layer, H_in → H_out.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().T.contiguous())
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = torch.matmul(x, self.weight)
        return product if self.bias is None else product + self.bias


class FusedAttention(nn.Module):
    """Query, key, value and softmax of one block as the operator `com.microsoft::Attention`.

    Its weights are (H, 3 · heads · d): query, key and value side by side. The mask is (B, L) int32, 1 for tokens. It can be
    traced, not run.

    Args:
        block: The block, with any number of heads.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat([linear.weight for linear in block.inputs]).T.contiguous())
        self.bias = nn.Parameter(torch.cat([linear.bias for linear in block.inputs]))
        self.heads = block.heads

    def extra_repr(self) -> str:
        """Tell attention of different heads apart."""
        return f"heads={self.heads}"

    def context(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Attend: states (B, L, H) and mask (B, L) to (B, L, heads · d)."""
        batch, length, _ = states.shape
        attended: torch.Tensor = torch.onnx.ops.symbolic(
            "com.microsoft::Attention", [states, self.weight, self.bias, mask], {"num_heads": self.heads},
            dtype=states.dtype, shape=(batch, length, self.weight.shape[1] // 3), version=1,
        )  # fmt: skip
        return attended

    def forward(self, states: torch.Tensor, attention_mask: torch.Tensor, **unused: Any) -> tuple[torch.Tensor, None]:
        """Compute what `BertSelfAttention` computes.

        Args:
            states: (B, L, H).
            attention_mask: (B, L) int32, 1 for tokens.
            **unused: Ignored.
        """
        return self.context(states, attention_mask), None


class _Albert(FusedAttention):
    """ALBERT's attention module also projects, adds and normalises."""

    def __init__(self, block: Block) -> None:
        super().__init__(block)
        self.dense, self.norm = block.output, block.attention.LayerNorm

    def forward(self, states: torch.Tensor, attention_mask: torch.Tensor, **unused: Any) -> tuple[torch.Tensor, None]:
        return self.norm(states + self.dense(self.context(states, attention_mask))), None


class _DistilBert(FusedAttention):
    """DistilBERT's attention module also projects."""

    def __init__(self, block: Block) -> None:
        super().__init__(block)
        self.dense = block.output

    def forward(self, states: torch.Tensor, attention_mask: torch.Tensor, **unused: Any) -> tuple[torch.Tensor, None]:
        return self.dense(self.context(states, attention_mask)), None


_BY_TYPE: dict[str, type[FusedAttention]] = {"albert": _Albert, "distilbert": _DistilBert}


def layered(encoder: Any) -> LayerStack:
    """Copy an encoder for tracing.

    Args:
        encoder: A Hugging Face encoder of a supported family; it does not change.

    Returns:
        The copy, layer by layer; its layers take the tokens' mask (B, L) int32 instead of an attention mask.
    """
    copied = copy.deepcopy(encoder)
    fused = _BY_TYPE.get(copied.config.model_type, FusedAttention)
    replacements: dict[nn.Module, nn.Module] = {block.attention: fused(block) for block in blocks(copied)}
    replace_modules(copied, replacements)
    replace_linear(copied)
    return LayerStack(copied.eval())


def replace_linear(module: nn.Module) -> None:
    """Replace the linear layers within a module, in place; one that is shared stays shared."""
    linear = [child for child in module.modules() if type(child) is nn.Linear]
    replace_modules(module, {child: Product(child) for child in linear})


def replace_modules(module: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Replace modules within another one, in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if child in replacements:
                setattr(parent, name, replacements[child])
