"""Move padding from the left of samples to the right, so that predictions don't depend on the padding side.

Encoders count positions from the left edge of a batch, and exits read the first position. Padding on the left would shift both
by a number that depends on the longest sample of the batch. So the model rotates every sample until its first attended token
is at position 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

#: Tensors of a batch with one value per token, (B, L).
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def first_attended(attention_mask: torch.Tensor) -> torch.Tensor:
    """Find the position of each sample's first attended token.

    Args:
        attention_mask: (B, L), nonzero for attended tokens.

    Returns:
        (B, 1) int64; 0 for samples without attended tokens.
    """
    return attention_mask.ne(0).to(torch.int32).argmax(dim=1, keepdim=True)


def padded_behind(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rotate each sample of a batch to the left until its first attended token is at position 0.

    Samples that begin with an attended token don't change. Without an attention mask of shape (B, L), the batch does not change,
    as in Hugging Face's models. The function uses only tensor operations, so that models can be traced, exported and compiled.

    Args:
        batch: Tensors by name; those of :data:`PER_TOKEN` are (B, L), or (1, L) for all samples.

    Returns:
        The batch with rotated :data:`PER_TOKEN` tensors; other tensors are unchanged.
    """
    mask = batch.get("attention_mask")
    if mask is None or mask.dim() != 2:
        return dict(batch)
    length = mask.shape[1]
    ahead = torch.arange(length, device=mask.device) + first_attended(mask)  # (B, L)
    index = torch.where(ahead < length, ahead, ahead - length)  # the remainder, which ONNX lacks for a dynamic length
    rotated = {name: batch[name].expand_as(mask).gather(1, index) for name in PER_TOKEN if name in batch}
    return {**batch, **rotated}
