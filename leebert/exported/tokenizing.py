"""Tokenise texts with `tokenizers` alone, as the transformers tokenizer of the model does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leebert.data.collate import TokenRows
from leebert.data.texts import bad_text, is_text
from leebert.errors import CheckpointError, ConfigError, DataError
from leebert.exported.manifest import ADVICE, TOKENIZER, Manifest

_SHOWN = 3  # the number of rows that an error names


def tokenizer_text(tokenizer: Any, max_length: int, direction: str = "right") -> str:
    """Return the text of `tokenizer.json` for a tokenizer of transformers.

    Args:
        tokenizer: Its `backend_tokenizer`; it is not changed.
        max_length: Tokens to which texts are truncated.
        direction: The side on which they are truncated, its `truncation_side`.
    """
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_padding()
    copy.enable_truncation(max_length, direction=direction)
    text: str = copy.to_str()
    return text


class TextEncoder:
    """The tokenizer of an exported model.

    Calls from several threads do not disturb each other: texts are truncated by a tokenizer of their own.

    Args:
        data: The contents of `tokenizer.json`. If it truncates, its direction is kept.
        manifest: The manifest.

    Raises:
        CheckpointError: The file is damaged, or made by an unknown version of `tokenizers`.
        ConfigError: The package `tokenizers` is not installed.
    """

    def __init__(self, data: bytes, manifest: Manifest) -> None:
        self._data, self._limit, self._padding_id = data, manifest.max_length, manifest.padding_id
        self._columns = tuple(names[0] for names in manifest.text_columns)
        self._segments = any("token_type_ids" in segment.inputs for segment in manifest.segments)
        self._whole = self._tokenizer()
        self._direction = (self._whole.truncation or {}).get("direction", "right")
        self._whole.no_truncation()
        self._truncating: Any = None

    def encode(self, texts: Sequence[tuple[str, ...]], *, truncate: bool = False) -> TokenRows:
        """Tokenise rows of texts, without padding.

        Args:
            texts: One tuple of one or two texts per row.
            truncate: Whether rows that are too long are truncated, instead of refused.

        Returns:
            The token ids of each row.

        Raises:
            DataError: A row has another number of texts, or a value that is no text, or is too long.
        """
        for number, values in enumerate(texts):
            self._check(number, values)
        tokenizer = self._shortening() if truncate else self._whole
        # One by one: `encode_batch` uses every core of the machine, whatever the number of threads.
        encoded = [tokenizer.encode(*values) for values in texts]
        ids = [one.ids for one in encoded]
        if long := [(row, len(one)) for row, one in enumerate(ids) if len(one) > self._limit]:
            shown = ", ".join(f"row {row} has {count}" for row, count in long[:_SHOWN])
            suffix = f" and {len(long) - _SHOWN} more rows are too long" if len(long) > _SHOWN else ""
            raise DataError(
                f"the model takes at most {self._limit} tokens: {shown}{suffix}; shorten the texts, or set truncate: true"
            )
        types = {"token_type_ids": [one.type_ids for one in encoded]} if self._segments else {}
        return TokenRows.of({"input_ids": ids, **types}, self._padding_id)

    def _check(self, number: int, values: tuple[str, ...]) -> None:
        if not isinstance(values, tuple) or len(values) != len(self._columns):
            names = ", ".join(self._columns)
            raise DataError(f"row {number}: should be a tuple of {len(self._columns)} text(s) ({names})")
        for name, value in zip(self._columns, values, strict=True):
            if not is_text(value):
                raise bad_text(f"row {number}", name, value)

    def _shortening(self) -> Any:
        """The tokenizer that truncates, made at its first use."""
        if self._truncating is None:
            tokenizer = self._tokenizer()
            tokenizer.enable_truncation(self._limit, direction=self._direction)
            self._truncating = tokenizer
        return self._truncating

    def _tokenizer(self) -> Any:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ConfigError("exported models of texts need tokenizers: pip install 'leebert-sweep[serve]'") from None
        try:
            tokenizer = Tokenizer.from_str(self._data.decode("utf-8"))
        except Exception as error:  # tokenizers raises Exception itself
            raise CheckpointError(f"{TOKENIZER} can't be read: {error}; {ADVICE}") from None
        tokenizer.no_padding()
        return tokenizer
