"""Tokenise texts once, into an Arrow file that all processes map into memory."""

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
    """Tokenise samples with a fast Hugging Face tokenizer into an Arrow IPC file, and open it.

    The columns are input_ids list<int32>; token_type_ids list<int8> if the tokenizer's model takes them; label int64 if the
    samples are labelled; row_id int64. The longer text of a pair is truncated first. The file is written atomically.

    Args:
        examples: N samples.
        tokenizer: A fast tokenizer with a padding token.
        max_length: Tokens per sample, special tokens included.
        path: The file to write.
        chunk: Samples held as Python lists at a time.

    Raises:
        DataError: No samples, an unsuitable tokenizer or max_length, or more tokens than a file can hold.
    """
    if not len(examples):
        raise DataError(f"{examples.source}: no samples to tokenise")
    backend = _configured(tokenizer, max_length, pairs=len(examples.texts) == 2)
    with_types = "token_type_ids" in tokenizer.model_input_names
    ids, types, lengths, truncated = [], [], [], 0
    for start in range(0, len(examples), chunk):
        texts = [column[start : start + chunk] for column in examples.texts]
        encoded = backend.encode_batch_fast(list(zip(*texts, strict=True)) if len(texts) == 2 else texts[0])
        lengths.append(np.fromiter(map(len, encoded), np.int32, len(encoded)))
        ids.append(_joined([row.ids for row in encoded], np.int32, int(lengths[-1].sum())))
        if with_types:
            types.append(_joined([row.type_ids for row in encoded], np.int8, int(lengths[-1].sum())))
        truncated += sum(1 for row in encoded if row.overflowing)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths), dtype=np.int64)])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise DataError(
            f"{examples.source}: {offsets[-1]} tokens exceed the limit of one file; use a subset of the samples"
        )
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
    """Return the SHA-256 (hex) of everything that a token file depends on.

    Args:
        examples: The samples and their ids.
        tokenizer: A fast tokenizer.
        max_length: Tokens per sample.
    """
    digest = hashlib.sha256(f"{arrow.LAYOUT}/{max_length}/{examples.fingerprint()}".encode())
    digest.update(examples.ids.astype("<i8").tobytes())
    backend = _configured(tokenizer, max_length, pairs=len(examples.texts) == 2)
    digest.update(backend.to_str().encode())
    digest.update(f"{'token_type_ids' in tokenizer.model_input_names}/{tokenizer.pad_token_id}".encode())
    return digest.hexdigest()


def cached(examples: Examples, tokenizer: Any, max_length: int, folder: str | Path) -> TokenisedSplit:
    """Open the token file of samples in a cache folder; tokenise at the first call.

    A damaged file, or one of other samples, is rebuilt with a warning (:func:`leebert.data.arrow.load_or_build`).

    Args:
        examples: N samples.
        tokenizer: A fast tokenizer with a padding token.
        max_length: Tokens per sample, special tokens included.
        folder: The cache folder.

    Raises:
        DataError: As :func:`tokenise`.
    """
    key = token_fingerprint(examples, tokenizer, max_length)
    path = Path(folder) / f"{key}.arrow"
    mismatch = "the tokens of other data or settings"
    return arrow.load_or_build(
        path, key, mismatch, TokenisedSplit.open, lambda: tokenise(examples, tokenizer, max_length, path)
    )


def _configured(tokenizer: Any, max_length: int, pairs: bool) -> Any:
    """Copy the tokenizer's Rust backend, with truncation at max_length and without padding.

    Some tokenizer.json files set truncation and padding (sentence encoders: both at 128), which would truncate samples
    silently. The copy leaves the caller's tokenizer unchanged.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    if backend is None:
        raise DataError(f"tokenizer {name}: not a fast tokenizer (no tokenizer.json); use a fast one")
    if tokenizer.pad_token_id is None:
        raise DataError(f"tokenizer {name}: no padding token; set one in its tokenizer_config.json")
    copy = Tokenizer.from_str(backend.to_str())
    special = copy.num_special_tokens_to_add(pairs)
    least, most = special + (2 if pairs else 1), tokenizer.model_max_length
    if not least <= max_length <= most:
        raise DataError(f"max_length {max_length}: the tokenizer {name} allows {least} to {most} tokens per sample")
    copy.no_padding()
    copy.enable_truncation(max_length, strategy="longest_first", direction=tokenizer.truncation_side)
    return copy


def _joined(lists: Sequence[Sequence[int]], dtype: Any, total: int) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(lists), dtype, total)


@dataclasses.dataclass(frozen=True, eq=False)
class TokenisedSplit:
    """The tokens of N samples, mapped from a file; pickled as the file's path.

    Attributes:
        path: The file.
        input_ids: (T,) int32 token ids of all samples; sample i is ``offsets[i]:offsets[i + 1]``.
        offsets: (N + 1,) int32.
        token_type_ids: (T,) int8; None if the model takes none.
        lengths: (N,) int32 tokens per sample.
        labels: (N,) int64; None for unlabelled samples.
        row_ids: (N,) int64 row numbers in the source.
        truncated: Number of samples that were truncated.
        max_length: Tokens per sample, special tokens included.
        pad_id: The padding token.
        fingerprint: The digest of :func:`token_fingerprint`.
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
        """Map a token file into memory. Raises CacheError if it is missing, damaged or of another layout."""
        if not Path(path).is_file():
            raise CacheError(f"{path}: no such token file; make it with `cached` or `tokenise`")
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
        """The tokens without labels."""
        return TokenRows(self.input_ids, self.token_type_ids, self.offsets, self.pad_id)

    def collate(self, indices: Any) -> dict[str, torch.Tensor]:
        """Make a batch, padded to its longest sample.

        Args:
            indices: (B,) positions of the samples.

        Returns:
            int64 tensors: input_ids, attention_mask and, if the model takes them, token_type_ids, (B, L); labels (B,) if
            the samples are labelled.
        """
        import torch

        batch = self.tokens.collate(indices)
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[np.asarray(indices, dtype=np.int64)])
        return batch
