"""Word embeddings of a lower rank."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from leebert.errors import ConfigError
from leebert.slim.parts import layer_paths


class FactorisedEmbedding(nn.Module):
    """A replacement of `nn.Embedding` (V, E) by a table (V, r) and a projection (E, r).

    Args:
        num_embeddings: V.
        embedding_dim: E.
        rank: r.
        padding_idx: As in `nn.Embedding`.
        device: Device of the weights.
        dtype: Type of the weights.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rank: int,
        padding_idx: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self.table = nn.Embedding(num_embeddings, rank, padding_idx, device=device, dtype=dtype)
        self.projection = nn.Linear(rank, embedding_dim, bias=False, device=device, dtype=dtype)

    @property
    def rank(self) -> int:
        return self.table.embedding_dim

    @property
    def weight(self) -> torch.Tensor:
        """The equivalent matrix of `nn.Embedding`, (V, E), computed."""
        weight: torch.Tensor = self.projection(self.table.weight)
        return weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Look up ids of any shape; returns embeddings (…, E)."""
        embedded: torch.Tensor = self.projection(self.table(ids))
        return embedded


def factorise_embeddings(encoder: Any, rank: int) -> None:
    """Replace the word embeddings (V, E) by their nearest product of a given rank (truncated SVD), in place.

    At rank E the function is unchanged. Factorised embeddings are factorised again. E is the hidden size H, except for ALBERT
    and small ELECTRA models, which project embeddings of size E to H; that projection stays, because a normalisation
    precedes it.

    Args:
        encoder: A Hugging Face encoder.
        rank: r, between 1 and the present rank.

    Raises:
        ConfigError: The rank is out of range.
    """
    old = encoder.get_input_embeddings()
    new = blank_embeddings(encoder, rank)
    with torch.no_grad():
        if isinstance(old, FactorisedEmbedding):
            dense = old.table.weight.double() @ old.projection.weight.double().T
        else:
            dense = old.weight.double()  # (V, E)
        # The right singular vectors are the eigenvectors of the small (E, E) product; eigh sorts upwards.
        vectors = torch.linalg.eigh(dense.T @ dense).eigenvectors.flip(1)[:, :rank]
        new.table.weight.copy_(dense @ vectors)
        new.projection.weight.copy_(vectors)
    for module in new.modules():  # transformers re-initialises modules without this mark
        module._is_hf_initialized = True  # type: ignore[assignment]
    encoder.set_input_embeddings(new)


def blank_embeddings(encoder: Any, rank: int) -> FactorisedEmbedding:
    """Make uninitialised factorised embeddings in the shape of an encoder's. Raises ConfigError if the rank is out of range."""
    layer_paths(encoder)
    old = encoder.get_input_embeddings()
    most = old.rank if isinstance(old, FactorisedEmbedding) else min(old.num_embeddings, old.embedding_dim)
    if not 1 <= rank <= most:
        raise ConfigError(f"embeddings of rank {rank}: the embeddings have rank {most}; use 1 to {most}")
    like = next(old.parameters())
    return FactorisedEmbedding(
        old.num_embeddings, old.embedding_dim, rank, old.padding_idx, device=like.device, dtype=like.dtype
    )
