"""Where a row's tokens stand in a batch: padding before them moves behind them, so that it changes nothing.

Encoders count positions from the left edge of a batch, and exits read the first position. A tokenizer that pads on the
left shifts both by as much as the longest neighbour asks for. The model therefore turns every row until its first
attended token stands at position 0; all that follows is as for padding on the right.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

#: What a batch has for each token, (B, L).
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def first_attended(attention_mask: torch.Tensor) -> torch.Tensor:
    """The position of each row's first attended token, (B, 1) int64; 0 where a row has none.

    Args:
        attention_mask: (B, L), not 0 where a token is attended.
    """
    return attention_mask.ne(0).to(torch.int32).argmax(dim=1, keepdim=True)


def padded_behind(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Turn each row of a batch to the left until its first attended token stands at position 0.

    Rows that begin with an attended token stay as they are, bit for bit. Without an attention mask, and with one that
    is not (B, L), nothing is known of padding, and the batch stays as it is, as in Hugging Face's models. Only tensor
    operations are used, so that the model can be traced, exported and compiled.

    Args:
        batch: tensors by name; those of :data:`PER_TOKEN` are (B, L), or (1, L) for all rows, and turned together.

    Returns:
        The same names. Others than :data:`PER_TOKEN` are passed on as they are.
    """
    mask = batch.get("attention_mask")
    if mask is None or mask.dim() != 2:
        return dict(batch)
    length = mask.shape[1]
    ahead = torch.arange(length, device=mask.device) + first_attended(mask)  # (B, L)
    index = torch.where(ahead < length, ahead, ahead - length)  # the remainder, which ONNX has for no length of its own
    turned = {name: batch[name].expand_as(mask).gather(1, index) for name in PER_TOKEN if name in batch}
    return {**batch, **turned}
