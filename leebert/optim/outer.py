"""Outer objectives of ω that contain no learned weights: what the weights are to improve on held-out samples.

The objective L(θ, ω) of eq. 5 is linear in the weights, so ∂L/∂w is the vector of the loss terms: whoever descends on it moves
weight to the smallest term, useful or not. The objectives here depend on ω only through θ (:mod:`leebert.optim.hypergradient`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from leebert.record import Record

#: `weighted` is L(θ, ω) itself, as in eqs. 8 and 9; the others are keys of :data:`OBJECTIVES`.
Outer = Literal["weighted", "ce", "deepest", "score"]

#: Maps a record of B samples to a scalar with a graph.
OuterObjective = Callable[["Record"], "torch.Tensor"]


def mean_cross_entropy(record: Record) -> torch.Tensor:
    """Compute the mean over exits of the cross-entropy, eq. 1 divided by M."""
    from leebert.losses import cross_entropy_per_exit

    return cross_entropy_per_exit(record.logits, _labels(record)).mean()


def deepest_cross_entropy(record: Record) -> torch.Tensor:
    """Compute the cross-entropy of the last exit."""
    from leebert.losses import cross_entropy_per_exit

    return cross_entropy_per_exit(record.logits[-1:], _labels(record)).mean()


def expected_error(record: Record) -> torch.Tensor:
    """Compute 1 − p_m(y), averaged over exits and samples: the error rate of predictions drawn from p.

    It is the differentiable form of the validation score (mean accuracy over exits). It is bounded, and symmetric label noise
    does not move its minimum (Ghosh et al., AAAI 2017).
    """
    labels = _labels(record).expand(record.logits.shape[0], -1)
    return 1 - record.logits.softmax(dim=-1).gather(-1, labels[..., None]).mean()


def _labels(record: Record) -> torch.Tensor:
    if record.labels is None:
        raise ValueError("an outer objective needs labels")
    return record.labels


#: Outer objectives by the values of the option `outer`.
OBJECTIVES: dict[str, OuterObjective] = {
    "ce": mean_cross_entropy,
    "deepest": deepest_cross_entropy,
    "score": expected_error,
}
