"""Faster dropout on CPUs.

PyTorch draws dropout masks on one thread, which takes a fifth of an encoder's forward pass on two cores. Here a mask takes 16
random bits per element from NumPy's SFC64, seeded by torch's generator, so that `torch.manual_seed` still determines all
masks. Other devices, and models that are traced, compiled or exported, use torch's dropout.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "leebert_sdpa"


def dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """Apply inverted dropout: each element becomes 0 with probability p (to 2⁻¹⁶), else x / (1 − p); any shape."""
    if p <= 0.0:
        return x
    if x.device.type != "cpu" or _recorded():
        return F.dropout(x, p)
    # The factor is applied separately: in a bf16 mask it would be rounded.
    return (x * _mask(x, p)) * (1 / (1 - p))


def _recorded() -> bool:
    """Whether operations are recorded (torch.jit, torch.compile, torch.export), which would make a mask a constant."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]  # not annotated


def _mask(x: torch.Tensor, p: float) -> torch.Tensor:
    """Draw a bool mask of the elements to keep, in the shape of x; for a fake tensor, which has no values, a fake mask."""
    if isinstance(x, FakeTensor):
        return torch.empty_like(x, dtype=torch.bool)
    seed = int(torch.randint(2**62, (1,)))
    raw = np.random.SFC64(seed).random_raw((x.numel() + 3) // 4).view(np.int16)[: x.numel()]
    return torch.from_numpy(raw >= round(p * 2**16) - 2**15).view(x.shape)


class FastDropout(nn.Module):
    """`nn.Dropout` with :func:`dropout`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dropout(x, self.p) if self.training else x

    def extra_repr(self) -> str:
        return f"p={self.p}"


_dropout = dropout  # `attention` takes an argument of that name, as transformers calls it


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Compute scaled dot-product attention with fast dropout; without dropout or on a GPU, by torch's kernel.

    The signature is that of transformers' attention interface.

    Args:
        module: The attention module.
        query: (B, heads, L, d).
        key: (B, heads, L, d).
        value: (B, heads, L, d).
        attention_mask: Added to the scores; None: no mask.
        dropout: Probability of dropping an attention weight.
        scaling: Factor of the scores; None: 1 / √d.
        **options: Further arguments of torch's kernel.

    Returns:
        (B, L, heads, d), and None in place of the attention weights.
    """
    if dropout == 0.0 or query.device.type != "cpu":
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return output, None
    scores = query @ key.transpose(2, 3) * (1 / math.sqrt(query.shape[-1]) if scaling is None else scaling)
    if attention_mask is not None:
        masked = attention_mask.dtype == torch.bool
        scores = scores.masked_fill(~attention_mask, float("-inf")) if masked else scores + attention_mask
    weights = _dropout(torch.softmax(scores, dim=-1), dropout)
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def speed_up(encoder: Any) -> None:
    """Make an encoder use :func:`dropout`: replace its dropout modules and, if it is torch's, its attention."""
    for module in encoder.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, FastDropout(child.p))
    if encoder.config._attn_implementation == "sdpa":
        encoder.config._attn_implementation = ATTENTION
