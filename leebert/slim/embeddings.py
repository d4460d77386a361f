"""Word embeddings of a lower rank."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from leebert.errors import ConfigError
from leebert.slim.parts import places


class FactorisedEmbedding(nn.Module):
    """An embedding of V rows and width E as a table (V, r) and a projection (E, r); stands in for `nn.Embedding`."""

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
        """The (V, E) matrix that `nn.Embedding` would hold, computed."""
        weight: torch.Tensor = self.projection(self.table.weight)
        return weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids of any shape → their embeddings (…, E)."""
        embedded: torch.Tensor = self.projection(self.table(ids))
        return embedded


def factorise_embeddings(encoder: Any, rank: int) -> None:
    """Replace the word embeddings (V, E) by the product of rank `rank` that is nearest (truncated SVD), in place.

    At rank E it is the same function; embeddings that are factorised already get the lower rank of their product.
    E is the hidden size but for ALBERT and for ELECTRA's small models: there it is the narrower embedding size, from
    which the encoder's own projection leads to H. That one stays, as a normalisation stands between the two.
    Raises ConfigError for a rank that the embeddings don't have.
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
    for module in new.modules():  # transformers draws new weights for modules without this mark
        module._is_hf_initialized = True  # type: ignore[assignment]
    encoder.set_input_embeddings(new)


def blank_embeddings(encoder: Any, rank: int) -> FactorisedEmbedding:
    """Factorised embeddings of an encoder's shape, without its weights. Raises ConfigError for an impossible rank."""
    places(encoder)
    old = encoder.get_input_embeddings()
    most = old.rank if isinstance(old, FactorisedEmbedding) else min(old.num_embeddings, old.embedding_dim)
    if not 1 <= rank <= most:
        raise ConfigError(f"embeddings of rank {rank}: these have {most}, so it lies between 1 and {most}")
    like = next(old.parameters())
    return FactorisedEmbedding(
        old.num_embeddings, old.embedding_dim, rank, old.padding_idx, device=like.device, dtype=like.dtype
    )
