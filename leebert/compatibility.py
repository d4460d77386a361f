"""Check that a tokenizer matches an encoder: vocabulary, positions, segment ids, padding and the first token.

The check runs before training and serving. Otherwise a token, position or segment without an embedding raises an IndexError
deep inside the encoder, in the first batch that contains it; on a GPU, a kernel's assertion fails.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from leebert.errors import BackboneError, ConfigError, DataError

if TYPE_CHECKING:
    from leebert.data.collate import TokenRows


@dataclasses.dataclass(frozen=True)
class Limits:
    """The sizes of an encoder's embeddings.

    Attributes:
        name: Name of the encoder in messages.
        rows: Rows of the word embedding, for the ids 0 to rows − 1.
        positions: Rows of the position embedding; None: unlimited.
        reserved: Positions that the RoBERTa family uses for padding.
        segments: Rows of the segment embedding; None if the encoder ignores segment ids or has one segment.
    """

    name: str
    rows: int
    positions: int | None
    reserved: int = 0
    segments: int | None = None

    @classmethod
    def of_config(cls, name: str, config: Any, rows: int | None = None) -> Limits:
        """Read the limits from an encoder's configuration.

        Args:
            name: Name of the encoder in messages.
            config: Its Hugging Face configuration.
            rows: Rows of its word embedding; None: as configured.

        Raises:
            BackboneError: The padding token is missing or has no embedding.
        """
        from leebert.backbone import FAMILIES

        rows = config.vocab_size if rows is None else rows
        padding = getattr(config, "pad_token_id", None)
        if padding is not None and padding >= rows:
            raise BackboneError(
                f"{name}: pad_token_id {padding} in its config.json has no embedding: the encoder has {rows} (ids 0 to "
                f"{rows - 1}); set it to the id of the tokenizer's padding token"
            )
        family = FAMILIES.get(config.model_type)
        reserved = 0
        if family and family.counts_from_padding:
            if padding is None:
                raise BackboneError(
                    f"{name}: its config.json has no pad_token_id, from which {config.model_type} counts positions; "
                    "set it to the id of the tokenizer's padding token"
                )
            reserved = padding + 1
        segments = getattr(config, "type_vocab_size", None)
        return cls(
            name=name,
            rows=rows,
            positions=getattr(config, "max_position_embeddings", None),
            reserved=reserved,
            segments=segments if segments and segments > 1 else None,
        )

    @property
    def longest(self) -> int | None:
        """The largest number of tokens per sample; None: unlimited."""
        return None if self.positions is None else self.positions - self.reserved

    def check_length(self, max_length: int, file: str = "") -> None:
        """Check that samples of `max_length` tokens don't exceed the encoder's positions.

        Args:
            max_length: Tokens per sample, special tokens included.
            file: The file that sets it, if it is not the user's configuration.

        Raises:
            ConfigError: `max_length` is too large.
        """
        longest = self.longest
        if longest is None or max_length <= longest:
            return
        reserved = f", of which the first {self.reserved} are for padding" if self.reserved else ""
        place = f" in {file}" if file else ""
        raise ConfigError(
            f"max_length {max_length}{place}: {self.name} has {self.positions} positions{reserved}, for at most {longest} "
            f"tokens; set max_length to {longest} or less (in a configuration of `leebert train`: model.max_length)"
        )

    def mismatches(self, tokenizer: Any, *, pairs: bool) -> list[str]:
        """List the outputs of a tokenizer for which the encoder has no embedding.

        Args:
            tokenizer: A Hugging Face tokenizer.
            pairs: Whether it encodes pairs of texts.

        Returns:
            One clause per mismatch, with both numbers.
        """
        clauses = []
        ids = tokenizer.get_vocab().values()
        highest = max(ids, default=-1)
        if highest >= self.rows:
            clauses.append(
                f"its tokenizer has {len(ids)} tokens (ids up to {highest}), and the encoder embeds {self.rows} (ids "
                f"up to {self.rows - 1})"
            )
        if tokenizer.pad_token_id is None:
            clauses.append("its tokenizer has no padding token (pad_token in tokenizer_config.json)")
        if self.segments is not None and "token_type_ids" in tokenizer.model_input_names:
            frame = _frame(tokenizer, pairs)
            segment = max(frame.type_ids, default=0) if frame else 0
            if segment >= self.segments:
                clauses.append(
                    f"its tokenizer returns segment ids up to {segment}, and the encoder embeds {self.segments} segments "
                    f"(ids up to {self.segments - 1})"
                )
        return clauses

    def check_rows(self, rows: TokenRows, source: str, row_ids: Sequence[int] | np.ndarray | None = None) -> None:
        """Check that the encoder has embeddings for all token and segment ids of tokenised samples.

        Only a tokenizer changed after :meth:`mismatches` can produce other ids.

        Args:
            rows: N tokenised samples.
            source: Their name in messages.
            row_ids: (N,) their row numbers in messages; None: from 0.

        Raises:
            DataError: An id has no embedding.
        """
        if rows.pad_id is None or not 0 <= rows.pad_id < self.rows:
            raise DataError(
                f"{source}: the tokenizer's padding token has the id {rows.pad_id}, and {self.name} embeds the ids 0 "
                f"to {self.rows - 1}; use the tokenizer that the encoder was trained with"
            )
        for ids, limit, kind in (
            (rows.input_ids, self.rows, "token id"),
            (rows.token_type_ids, self.segments, "segment id"),
        ):
            if ids is None or limit is None or not len(ids) or (ids.max() < limit and ids.min() >= 0):
                continue
            position = int(np.flatnonzero((ids >= limit) | (ids < 0))[0])
            row = rows.row_of(position)
            number = row if row_ids is None else int(row_ids[row])
            raise DataError(
                f"{source}, row {number}: {kind} {int(ids[position])}, and {self.name} embeds the ids 0 to {limit - 1}; use "
                "the tokenizer that the encoder was trained with"
            )


def limits_of(backbone: str) -> Limits:
    """Read the limits of a backbone from its configuration. Raises BackboneError."""
    from leebert.backbone import load_config

    return Limits.of_config(f"backbone {backbone}", load_config(backbone))


def limits_of_encoder(encoder: Any, name: str = "the model") -> Limits:
    """Read the limits of a loaded encoder from its embeddings.

    Args:
        encoder: The encoder.
        name: Its name in messages.

    Returns:
        Number of token ids, positions and segments.

    Raises:
        BackboneError: The configuration contradicts the embeddings.
    """
    return Limits.of_config(name, encoder.config, encoder.get_input_embeddings().num_embeddings)


def check_tokenizer(tokenizer: Any, limits: Limits, *, pairs: bool, pooling: str) -> None:
    """Check that a backbone's tokenizer matches the backbone, before training.

    Args:
        tokenizer: The backbone's tokenizer.
        limits: The backbone's limits.
        pairs: Whether samples are pairs of texts.
        pooling: Pooling before each classifier.

    Raises:
        BackboneError: They don't match; the message lists all mismatches and what to do.
    """
    if clauses := limits.mismatches(tokenizer, pairs=pairs):
        needed = max(tokenizer.get_vocab().values(), default=-1) + 1
        resize = (
            f", or resize the encoder's embedding (resize_token_embeddings({needed})) and save both"
            if needed > limits.rows
            else ""
        )
        raise BackboneError(
            f"{limits.name}: {'; '.join(clauses)}; use the tokenizer that the encoder was trained with{resize}"
        )
    if pooling != "mean" and not begins_with_special_token(tokenizer):
        raise BackboneError(
            f"{limits.name}: its tokenizer puts no special token such as [CLS] before a text, and exits with pooling "
            f"{pooling!r} read the first token; set pooling to mean, or use the tokenizer that the encoder was "
            "trained with"
        )


def vocabulary_digest(tokenizer: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a tokenizer's tokens, in the order of their ids."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]


def begins_with_special_token(tokenizer: Any) -> bool:
    """Whether a tokenizer puts a token such as [CLS] before a text."""
    encoding = _frame(tokenizer, pairs=False)
    if encoding is None:
        return True
    attended = zip(encoding.special_tokens_mask, encoding.attention_mask, strict=True)
    return next((bool(special) for special, counts in attended if counts), False)


def _frame(tokenizer: Any, pairs: bool) -> Any:
    """Encode empty texts, which yields the special tokens around any text; None for slow tokenizers, which training refuses.

    Calls the backend, since a call of the tokenizer would overwrite the padding settings of its file.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    return backend.encode("", "") if pairs else backend.encode("")
