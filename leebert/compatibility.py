"""Whether a tokenizer and an encoder fit each other: vocabulary, positions, segment ids, padding and the first token.

Compared before anything trains or serves. A token, position or segment without an embedding ends otherwise in an
IndexError deep inside the encoder, in whichever batch holds it first; on a GPU in a failed assertion of a kernel.
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
    """What an encoder has embeddings for.

    name: what messages call it. rows: of its word embedding, which takes the ids 0 to rows − 1.
    positions: of its position embedding, of which those of the RoBERTa family use the first `reserved` for padding.
    segments: rows of its segment embedding; None where it reads no segment ids, and where it has one segment: every
    token is in it then.
    """

    name: str
    rows: int
    positions: int | None
    reserved: int = 0
    segments: int | None = None

    @classmethod
    def of_config(cls, name: str, config: Any, rows: int | None = None) -> Limits:
        """The limits of an encoder's configuration.

        Args:
            name: what messages call the encoder.
            config: its Hugging Face configuration.
            rows: of the word embedding that it has; None: as configured.

        Raises:
            BackboneError: its padding token is not one that it can have.
        """
        from leebert.backbone import FAMILIES

        rows = config.vocab_size if rows is None else rows
        padding = getattr(config, "pad_token_id", None)
        if padding is not None and padding >= rows:
            raise BackboneError(
                f"{name}: pad_token_id {padding} in its config.json has no embedding: there are {rows} (ids 0 to "
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
        """How many tokens a row may have; None: as many as one likes."""
        return None if self.positions is None else self.positions - self.reserved

    def check_length(self, max_length: int, where: str = "") -> None:
        """Raise ConfigError where rows of `max_length` tokens have more than there are positions for.

        Args:
            max_length: tokens that a row may have, special ones included.
            where: the file that says so, if it is not the user's configuration.
        """
        longest = self.longest
        if longest is None or max_length <= longest:
            return
        of = f", of which its family uses the first {self.reserved} for padding" if self.reserved else ""
        at = f" in {where}" if where else ""
        raise ConfigError(
            f"max_length {max_length}{at}: {self.name} has {self.positions} positions{of}: it takes at most {longest} "
            f"tokens; set max_length to {longest} or less"
        )

    def mismatches(self, tokenizer: Any, *, pairs: bool) -> list[str]:
        """What of a tokenizer's output the encoder has no embedding for, one clause each that names both numbers.

        Args:
            tokenizer: a Hugging Face tokenizer.
            pairs: whether it is to encode pairs of texts.
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
                    f"its tokenizer gives segment ids up to {segment}, and the encoder embeds {self.segments} segments "
                    f"(ids up to {self.segments - 1})"
                )
        return clauses

    def check_rows(self, rows: TokenRows, source: str, row_ids: Sequence[int] | np.ndarray | None = None) -> None:
        """Raise DataError where a row holds a token or a segment id that the encoder has no embedding for.

        A vocabulary that fits can't hold one; a tokenizer that was changed after it was compared can.

        Args:
            rows: the rows as they are sent to the encoder.
            source: what messages call them.
            row_ids: their numbers in messages; None: from 0.
        """
        if rows.pad_id is None or not 0 <= rows.pad_id < self.rows:
            raise DataError(
                f"{source}: the tokenizer's padding token has the id {rows.pad_id}, and {self.name} embeds the ids 0 "
                f"to {self.rows - 1}; use the tokenizer that the encoder was trained with"
            )
        for ids, limit, what in (
            (rows.input_ids, self.rows, "token id"),
            (rows.token_type_ids, self.segments, "segment id"),
        ):
            if ids is None or limit is None or not len(ids) or (ids.max() < limit and ids.min() >= 0):
                continue
            at = int(np.flatnonzero((ids >= limit) | (ids < 0))[0])
            row = rows.row_of(at)
            number = row if row_ids is None else int(row_ids[row])
            raise DataError(
                f"{source}, row {number}: {what} {int(ids[at])}, and {self.name} embeds the ids 0 to {limit - 1}; use "
                "the tokenizer that the encoder was trained with"
            )


def limits_of(backbone: str) -> Limits:
    """The limits of a backbone, from its configuration alone. Raises BackboneError."""
    from leebert.backbone import load_config

    return Limits.of_config(f"backbone {backbone}", load_config(backbone))


def limits_of_encoder(encoder: Any, name: str = "the model") -> Limits:
    """The limits of a loaded encoder, from the embeddings that it has. Raises BackboneError."""
    return Limits.of_config(name, encoder.config, encoder.get_input_embeddings().num_embeddings)


def check_tokenizer(tokenizer: Any, limits: Limits, *, pairs: bool, pooling: str) -> None:
    """Compare a backbone's tokenizer with it before training.

    Args:
        tokenizer: the backbone's.
        limits: the backbone's.
        pairs: whether rows are pairs of texts.
        pooling: what exits see.

    Raises:
        BackboneError: one line with everything that does not fit, and what to do.
    """
    if clauses := limits.mismatches(tokenizer, pairs=pairs):
        needed = max(tokenizer.get_vocab().values(), default=-1) + 1
        resize = (
            f", or resize the encoder's embedding (resize_token_embeddings({needed})) and save both"
            if needed > limits.rows
            else ""
        )
        raise BackboneError(
            f"{limits.name}: {'; '.join(clauses)}; give the tokenizer that the encoder was trained with{resize}"
        )
    if pooling != "mean" and not begins_with_special_token(tokenizer):
        raise BackboneError(
            f"{limits.name}: its tokenizer puts no special token such as [CLS] before a text, and exits with pooling "
            f"{pooling!r} read the first token; set pooling to mean, or give the tokenizer that the encoder was "
            "trained with"
        )


def vocabulary_digest(tokenizer: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a tokenizer's tokens, in the order of their ids."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]


def begins_with_special_token(tokenizer: Any) -> bool:
    """Whether a tokenizer puts a token such as [CLS] before a text."""
    frame = _frame(tokenizer, pairs=False)
    if frame is None:
        return True
    attended = zip(frame.special_tokens_mask, frame.attention_mask, strict=True)
    return next((bool(special) for special, seen in attended if seen), False)


def _frame(tokenizer: Any, pairs: bool) -> Any:
    """The encoding of empty texts: what a tokenizer puts around any. None of a slow one, with which nothing is trained.

    The backend is asked, since the tokenizer itself would forget how its file says to pad.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    return backend.encode("", "") if pairs else backend.encode("")
