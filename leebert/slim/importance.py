"""How much a loss would change without a head or a neuron: first-order estimates from gradients.

`model` is an early-exit model with a `backbone`, `batches` what it is judged on, and `loss` maps a batch to a scalar,
the mean over the batch's rows. Forward and backward take a batch in `accumulate` parts, for less memory; of scores
that changes no more than the rounding. The model is put into eval mode meanwhile; its
parameters get no `.grad`. A score is one tensor per block (:func:`leebert.slim.parts.blocks`), on the model's device;
blocks that the loss doesn't reach score 0.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from leebert.record import Batch, micro_batches
from leebert.slim.parts import Block, dense_blocks

Loss = Callable[[Batch], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Importance:
    """Scores per block: heads (heads,), neurons (neurons,)."""

    heads: list[torch.Tensor]
    neurons: list[torch.Tensor]


def head_importance(model: Any, batches: Iterable[Batch], loss: Loss, accumulate: int = 1) -> list[torch.Tensor]:
    """Mean over rows of |∂L/∂ξ| for a factor ξ = 1 on each head's output, (heads,) per block (Michel et al., 2019, eq. 3).

    Where a block is shared by several layers, ξ stands in all of them.
    """
    found = _blocks(model)
    totals = [torch.zeros(block.heads, device=block.output.weight.device) for block in found]
    seen = 0
    with _judged(model):
        for part in itertools.chain.from_iterable(micro_batches(batch, accumulate) for batch in batches):
            rows = _rows(part)
            # A row has factors of its own, so that one backward pass gives every row's derivatives.
            factors = [torch.ones(rows, len(total), device=total.device, requires_grad=True) for total in totals]
            with contextlib.ExitStack() as hooks:
                for block, factor in zip(found, factors, strict=True):
                    hooks.enter_context(block.output.register_forward_pre_hook(_times(factor)))
                gradients = torch.autograd.grad(loss(part), factors, materialize_grads=True)
            for total, gradient in zip(totals, gradients, strict=True):
                total += gradient.abs().sum(0) * rows  # the loss is a mean over rows
            seen += rows
    return [total / max(1, seen) for total in totals]


def weight_importance(model: Any, batches: Iterable[Batch], loss: Loss, accumulate: int = 1) -> Importance:
    """Heads and neurons by |weight| · Σ over batches |∂L/∂weight|, as COST-EFF scores them (Shen et al., 2022).

    A head's score sums those of its columns of the projection after attention, a neuron's those of its row of the inner
    and its column of the outer matrix.
    """
    found = _blocks(model)
    weights = [w for b in found for w in (b.output.weight, b.inner.weight, b.outer.weight)]
    sums = [torch.zeros_like(w) for w in weights]
    with _judged(model), _learning(weights):
        for batch in batches:
            for total, gradient in zip(sums, _gradients(batch, loss, weights, accumulate), strict=True):
                total += gradient.abs()
    scores = iter([total * weight.detach().abs() for total, weight in zip(sums, weights, strict=True)])
    heads, neurons = [], []
    for block, output, inner, outer in zip(found, scores, scores, scores, strict=True):
        heads.append(output.sum(0).view(block.heads, block.head_size).sum(1))
        neurons.append(inner.sum(1) + outer.sum(0))
    return Importance(heads, neurons)


def _gradients(batch: Batch, loss: Loss, weights: list[torch.Tensor], accumulate: int) -> list[torch.Tensor]:
    """∂L/∂weight of a whole batch: summed over its parts, before anybody takes its size."""
    sums = [torch.zeros_like(w) for w in weights]
    for part in micro_batches(batch, accumulate):
        share = _rows(part) / _rows(batch)
        gradients = torch.autograd.grad(loss(part) * share, weights, materialize_grads=True)
        for total, gradient in zip(sums, gradients, strict=True):
            total += gradient
    return sums


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _blocks(model: Any) -> list[Block]:
    return dense_blocks(getattr(model, "backbone", model))


def _times(factor: torch.Tensor) -> Callable[[nn.Module, tuple[torch.Tensor]], tuple[torch.Tensor]]:
    """A hook that multiplies the n parts of a linear layer's input (B, L, n · d) by (B, n)."""

    def hook(module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        x = inputs[0]
        b, n = factor.shape
        return ((x.unflatten(-1, (n, -1)) * factor.view(b, 1, n, 1)).flatten(-2),)

    return hook


@contextlib.contextmanager
def _judged(model: nn.Module) -> Iterator[None]:
    """Eval mode with gradients; the mode that was comes back."""
    training = model.training
    model.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        model.train(training)


@contextlib.contextmanager
def _learning(weights: list[torch.Tensor]) -> Iterator[None]:
    """Let gradients reach weights that are frozen."""
    frozen = [w for w in weights if not w.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
