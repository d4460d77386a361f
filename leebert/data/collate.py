"""Batches of tokens: the one implementation for training, evaluation, calibration, prediction and serving."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True, eq=False)
class TokenRows:
    """N tokenised samples in flat arrays.

    Attributes:
        input_ids: (T,) token ids of all samples; sample i is ``offsets[i]:offsets[i + 1]``.
        token_type_ids: (T,), or None if the model takes none.
        offsets: (N + 1,) start of each sample, and T.
        pad_id: The padding token. With None, no batch can be made.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray | None
    offsets: np.ndarray
    pad_id: int | None

    @classmethod
    def of(cls, encoded: Mapping[str, Any], pad_id: int | None) -> TokenRows:
        """Convert the unpadded lists of a Hugging Face tokenizer."""
        lengths = [len(ids) for ids in encoded["input_ids"]]
        types = encoded.get("token_type_ids")
        return cls(
            _flat(encoded["input_ids"], lengths),
            None if types is None else _flat(types, lengths),
            np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)]),
            pad_id,
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each sample."""
        return np.diff(self.offsets)

    def row_of(self, token: int) -> int:
        """Return the sample that holds a position of the flat arrays."""
        return int(np.searchsorted(self.offsets, token, side="right")) - 1

    def collate(self, indices: Any) -> dict[str, torch.Tensor]:
        """Pad samples as :meth:`padded` does.

        Args:
            indices: (B,) positions of the samples.

        Returns:
            The same as tensors.
        """
        import torch

        return {name: torch.from_numpy(array) for name, array in self.padded(indices).items()}

    def padded(self, indices: Any) -> dict[str, np.ndarray]:
        """Pad samples on the right to the longest of them.

        The tokenizer's padding side is ignored: a model is trained with padding on the right and must be served that way.

        Args:
            indices: (B,) positions of the samples.

        Returns:
            int64 arrays (B, L): input_ids, attention_mask and, if the model takes them, token_type_ids.
        """
        index = np.asarray(indices, dtype=np.int64)
        starts = self.offsets[index].astype(np.int64)  # (B,)
        lengths = self.offsets[index + 1] - starts  # (B,)
        steps = np.arange(lengths.max(initial=0))  # (L,)
        mask = steps < lengths[:, None]  # (B, L)
        flat_positions = (starts[:, None] + steps)[mask]
        arrays = {"input_ids": np.full(mask.shape, self.pad_id, np.int64), "attention_mask": mask.astype(np.int64)}
        arrays["input_ids"][mask] = self.input_ids[flat_positions]
        if self.token_type_ids is not None:
            arrays["token_type_ids"] = np.zeros(mask.shape, np.int64)
            arrays["token_type_ids"][mask] = self.token_type_ids[flat_positions]
        return arrays


def _flat(lists: Any, lengths: list[int]) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(lists), np.int64, sum(lengths))
