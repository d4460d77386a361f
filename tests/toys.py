"""Small models and data that tests share: everything here runs in milliseconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from leebert.config import TrainConfig
from leebert.data.folds import Folds
from leebert.methods import METHODS
from leebert.optim.fixed import Fixed
from leebert.record import Batch, Keep, Record, TensorRows

#: The optimiser of ω of every method that trains on eq. 5 with whatever teachers, made from a configuration.
ALGORITHMS = {
    name: method.omega or (lambda config: Fixed())
    for name, method in METHODS.items()
    if method.stages is None and method.teachers is None
}


class ThreeExitMLP(nn.Module):
    """Three layers of tanh units on plain feature vectors, a linear exit after each: no text, no transformers."""

    num_exits = 3
    depth = 3

    def __init__(self, features: int = 6, hidden: int = 12, classes: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        sizes = [features, hidden, hidden, hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.heads = nn.ModuleList(nn.Linear(hidden, classes) for _ in range(self.num_exits))
        self.dropout = nn.Dropout(dropout)
        self.exit_layers = tuple(range(1, self.num_exits + 1))

    def record(self, batch: Batch, keep: Keep = "logits") -> Record:
        x, logits, states = batch["features"], [], []
        for index, layer in enumerate(self.layers):
            x = torch.tanh(layer(x))
            states.append(x)
            if index + 1 in self.exit_layers:
                logits.append(self.heads[self.exit_layers.index(index + 1)](self.dropout(x)))
        hidden = torch.stack([states[layer - 1] for layer in self.exit_layers])
        return Record(
            torch.stack(logits).float(),
            batch.get("labels"),
            hidden if keep != "logits" else None,
            torch.stack(states) if keep == "states" else None,
        )

    def keep_exits(self, layers: Sequence[int]) -> None:
        self.heads = nn.ModuleList(self.heads[self.exit_layers.index(layer)] for layer in layers)
        self.exit_layers = tuple(layers)
        self.num_exits = len(layers)


def toy_rows(n: int = 96, features: int = 6, seed: int = 0, classes: int = 2) -> TensorRows:
    """A learnable problem: the label is the sign of a product, which the first layer alone can't represent."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=g)
    labels = ((x[:, 0] * x[:, 1] + 0.5 * x[:, 2]) > 0).long() % classes
    return TensorRows(features=x, labels=labels)


def toy_mlp(seed: int = 0, **options: float) -> ThreeExitMLP:
    torch.manual_seed(seed)
    return ThreeExitMLP(**options)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class ToyProblem:
    """The three-exit MLP as a problem: no text, no transformers."""

    metric: str = "accuracy"
    label_names: tuple[str, ...] = ("no", "yes")
    size: int = 96

    def rows(self) -> TensorRows:
        return toy_rows(self.size)

    def split(self, name: str) -> TensorRows:
        return toy_rows(24, seed=1)

    def model(self, config: TrainConfig) -> ThreeExitMLP:
        return ThreeExitMLP(dropout=config.exit_dropout)


def toy_folds(k: int, size: int = 96) -> Folds:
    """Folds of the toy rows, one row after the other."""
    return Folds(k, 0, "none", np.arange(size) % k, np.arange(size))
