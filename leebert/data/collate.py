"""Rows of tokens become a batch in one way: for training, evaluation, calibration, prediction and service alike."""

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
    """N rows of tokens, one after the other in flat arrays.

    input_ids: flat, row i at offsets[i]:offsets[i + 1], and token_type_ids beside it (None where the tokenizer's model
    takes none). pad_id: what a batch holds behind a row's last token; None: nothing, so that no batch can be made.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray | None
    offsets: np.ndarray
    pad_id: int | None

    @classmethod
    def of(cls, encoded: Mapping[str, Any], pad_id: int | None) -> TokenRows:
        """The rows that a Hugging Face tokenizer returned as lists, not padded."""
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
        """Tokens of each row, (N,)."""
        return np.diff(self.offsets)

    def row_of(self, token: int) -> int:
        """The row that a position of the flat arrays belongs to."""
        return int(np.searchsorted(self.offsets, token, side="right")) - 1

    def collate(self, indices: Any) -> dict[str, torch.Tensor]:
        """Rows at these positions as int64 tensors, padded behind their tokens to the longest among them.

        Tokenizers have a padding side of their own, which would serve a model otherwise than it was trained: it is not
        asked for.

        Returns:
            input_ids, attention_mask and, where there are any, token_type_ids: (B, L).
        """
        import torch

        index = np.asarray(indices, dtype=np.int64)
        starts = self.offsets[index].astype(np.int64)  # (B,)
        lengths = self.offsets[index + 1] - starts  # (B,)
        steps = np.arange(lengths.max(initial=0))  # (L,)
        mask = steps < lengths[:, None]  # (B, L)
        where = (starts[:, None] + steps)[mask]  # flat positions of the tokens
        arrays = {"input_ids": np.full(mask.shape, self.pad_id, np.int64), "attention_mask": mask.astype(np.int64)}
        arrays["input_ids"][mask] = self.input_ids[where]
        if self.token_type_ids is not None:
            arrays["token_type_ids"] = np.zeros(mask.shape, np.int64)
            arrays["token_type_ids"][mask] = self.token_type_ids[where]
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _flat(rows: Any, lengths: list[int]) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(rows), np.int64, sum(lengths))
