"""Texts become token ids once, in an Arrow file that every process maps into memory instead of copying it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from leebert.data import arrow
from leebert.data.collate import TokenRows
from leebert.data.sources import Examples
from leebert.errors import CacheError, DataError

if TYPE_CHECKING:
    import torch


def tokenise(
    examples: Examples, tokenizer: Any, max_length: int, path: str | Path, chunk: int = 10_000
) -> TokenisedSplit:
    """Tokenise rows with a fast Hugging Face tokenizer into an Arrow IPC file, and open it.

    Columns: input_ids list<int32>, token_type_ids list<int8> where the tokenizer's model takes them, label int64 where
    there are labels, row_id int64. Pairs are cut longest first to max_length; cut rows are counted. Only a chunk of
    rows exists as Python lists at a time, and the file appears under its name when it is complete. Raises DataError.
    """
    if not len(examples):
        raise DataError(f"{examples.source}: no rows to tokenise")
    backend = _configured(tokenizer, max_length, pairs=len(examples.texts) == 2)
    with_types = "token_type_ids" in tokenizer.model_input_names
    ids, types, lengths, truncated = [], [], [], 0
    for start in range(0, len(examples), chunk):
        texts = [column[start : start + chunk] for column in examples.texts]
        rows = backend.encode_batch_fast(list(zip(*texts, strict=True)) if len(texts) == 2 else texts[0])
        lengths.append(np.fromiter(map(len, rows), np.int32, len(rows)))
        ids.append(_joined([row.ids for row in rows], np.int32, int(lengths[-1].sum())))
        if with_types:
            types.append(_joined([row.type_ids for row in rows], np.int8, int(lengths[-1].sum())))
        truncated += sum(1 for row in rows if row.overflowing)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths), dtype=np.int64)])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise DataError(f"{examples.source}: {offsets[-1]} tokens are more than a file holds; use a subset of the rows")
    ends = pa.array(offsets.astype(np.int32))
    columns = {"input_ids": pa.ListArray.from_arrays(ends, pa.array(np.concatenate(ids)))}
    if with_types:
        columns["token_type_ids"] = pa.ListArray.from_arrays(ends, pa.array(np.concatenate(types)))
    if examples.labels is not None:
        columns["label"] = pa.array(examples.labels, pa.int64())
    columns["row_id"] = pa.array(examples.ids, pa.int64())
    metadata = {
        "rows": len(examples),
        "truncated": truncated,
        "max_length": max_length,
        "pad_id": tokenizer.pad_token_id,
        "fingerprint": token_fingerprint(examples, tokenizer, max_length),
    }
    arrow.write(columns, metadata, Path(path))
    return TokenisedSplit.open(path)


def token_fingerprint(examples: Examples, tokenizer: Any, max_length: int) -> str:
    """sha256 (hex) of all that the token file depends on: rows and their ids, the tokenizer, max_length."""
    digest = hashlib.sha256(f"{arrow.LAYOUT}/{max_length}/{examples.fingerprint()}".encode())
    digest.update(examples.ids.astype("<i8").tobytes())
    backend = _configured(tokenizer, max_length, pairs=len(examples.texts) == 2)
    digest.update(backend.to_str().encode())
    digest.update(f"{'token_type_ids' in tokenizer.model_input_names}/{tokenizer.pad_token_id}".encode())
    return digest.hexdigest()


def cached(examples: Examples, tokenizer: Any, max_length: int, folder: str | Path) -> TokenisedSplit:
    """The tokenised rows from `folder`, made at the first call.

    A file that is damaged, or holds other rows, is made again with a warning (:func:`leebert.data.arrow.kept_or_made`).
    """
    key = token_fingerprint(examples, tokenizer, max_length)
    path = Path(folder) / f"{key}.arrow"
    other = "the tokens of other data or settings"
    return arrow.kept_or_made(
        path, key, other, TokenisedSplit.open, lambda: tokenise(examples, tokenizer, max_length, path)
    )


def _configured(tokenizer: Any, max_length: int, pairs: bool) -> Any:
    """A copy of the tokenizer's Rust backend that cuts at max_length and never pads.

    Some tokenizer.json files bring their own truncation and padding (sentence encoders: both at 128), which would
    shorten rows without a word; and the caller's tokenizer stays as it was.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    if backend is None:
        raise DataError(f"tokenizer {name}: not a fast tokenizer (it has no tokenizer.json); use one that has")
    if tokenizer.pad_token_id is None:
        raise DataError(f"tokenizer {name}: it has no padding token; set one in its tokenizer_config.json")
    copy = Tokenizer.from_str(backend.to_str())
    special = copy.num_special_tokens_to_add(pairs)
    least, most = special + (2 if pairs else 1), tokenizer.model_max_length
    if not least <= max_length <= most:
        raise DataError(f"max_length {max_length}: the tokenizer {name} allows {least} to {most} tokens per row")
    copy.no_padding()
    copy.enable_truncation(max_length, strategy="longest_first", direction=tokenizer.truncation_side)
    return copy


def _joined(rows: Sequence[Sequence[int]], dtype: Any, total: int) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(rows), dtype, total)


@dataclasses.dataclass(frozen=True, eq=False)
class TokenisedSplit:
    """The tokens of N rows, mapped from a file; pickles as the file's path.

    input_ids: flat int32, row i at offsets[i]:offsets[i + 1], and token_type_ids beside it (None where the model takes
    none). lengths: (N,) int32 tokens per row. labels: (N,) int64, None when unlabelled. row_ids: (N,) int64.
    truncated: how many rows were cut at max_length.
    """

    path: str
    input_ids: np.ndarray
    offsets: np.ndarray
    token_type_ids: np.ndarray | None
    lengths: np.ndarray
    labels: np.ndarray | None
    row_ids: np.ndarray
    truncated: int
    max_length: int
    pad_id: int
    fingerprint: str

    @classmethod
    def open(cls, path: str | Path) -> TokenisedSplit:
        """Map a token file. Raises CacheError where it is missing, damaged or of another layout."""
        if not Path(path).is_file():
            raise CacheError(f"{path}: there is no such token file; it is made by `cached` or `tokenise`")
        path = Path(path).resolve()
        try:
            batch, meta = arrow.open_mapped(path)
            names = batch.schema.names
            offsets = batch["input_ids"].offsets.to_numpy(zero_copy_only=True)
            return cls(
                path=str(path),
                input_ids=arrow.flat(batch["input_ids"]),
                offsets=offsets,
                token_type_ids=arrow.flat(batch["token_type_ids"]) if "token_type_ids" in names else None,
                lengths=np.diff(offsets),
                labels=batch["label"].to_numpy(zero_copy_only=True) if "label" in names else None,
                row_ids=batch["row_id"].to_numpy(zero_copy_only=True),
                truncated=int(meta["truncated"]),
                max_length=int(meta["max_length"]),
                pad_id=int(meta["pad_id"]),
                fingerprint=meta["fingerprint"],
            )
        except (pa.ArrowException, OSError, ValueError, KeyError, AttributeError) as error:
            raise CacheError(f"{path}: the token file is damaged ({error})") from None

    def __len__(self) -> int:
        return len(self.row_ids)

    def __reduce__(self) -> tuple[Callable[[str], TokenisedSplit], tuple[str]]:
        return TokenisedSplit.open, (self.path,)

    @property
    def tokens(self) -> TokenRows:
        """The rows without labels, as batches are made of them."""
        return TokenRows(self.input_ids, self.token_type_ids, self.offsets, self.pad_id)

    def collate(self, indices: Any) -> dict[str, torch.Tensor]:
        """Rows at these positions as int64 tensors, padded to the longest among them.

        input_ids, attention_mask and, where there are any, token_type_ids: (B, L); labels: (B,).
        """
        import torch

        batch = self.tokens.collate(indices)
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[np.asarray(indices, dtype=np.int64)])
        return batch
