"""Small models and data that tests share: everything here runs in milliseconds."""

from __future__ import annotations

import dataclasses

import numpy as np

from leebert.config import TrainConfig
from leebert.data.folds import Folds
from leebert.methods import METHODS
from leebert.optim.fixed import Fixed
from leebert.record import TensorSamples
from leebert.testing import ThreeExitMLP, toy_mlp, toy_rows

__all__ = ["ALGORITHMS", "ThreeExitMLP", "ToyProblem", "toy_folds", "toy_mlp", "toy_rows"]

#: The optimiser of ω of every method that trains on eq. 5 with whatever teachers, made from a configuration.
ALGORITHMS = {
    name: method.omega or (lambda config: Fixed())
    for name, method in METHODS.items()
    if method.stages is None and method.teachers is None
}


@dataclasses.dataclass(frozen=True)
class ToyProblem:
    """The three-exit MLP as a problem: no text, no transformers."""

    metric: str = "accuracy"
    label_names: tuple[str, ...] = ("no", "yes")
    size: int = 96

    def rows(self) -> TensorSamples:
        return toy_rows(self.size)

    def split(self, name: str) -> TensorSamples:
        return toy_rows(24, seed=1)

    def model(self, config: TrainConfig) -> ThreeExitMLP:
        return ThreeExitMLP(dropout=config.exit_dropout)


def toy_folds(k: int, size: int = 96) -> Folds:
    """Folds of the toy rows, one row after the other."""
    return Folds(k, 0, "none", np.arange(size) % k, np.arange(size))
