"""Importance of attention heads and neurons: first-order estimates of the change of a loss without them.

`model` is an early-exit model with a `backbone`, and `loss` maps a batch to a scalar, the mean over the batch's samples.
Batches are processed in `accumulate` parts to save memory; scores change only by rounding. The model runs in eval mode and
its parameters get no `.grad`. Scores are one tensor per block (:func:`leebert.slim.parts.blocks`) on the model's device, 0
for blocks that the loss does not depend on.
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
    """Importance scores.

    Attributes:
        heads: (heads,) per block.
        neurons: (neurons,) per block.
    """

    heads: list[torch.Tensor]
    neurons: list[torch.Tensor]


def head_importance(model: Any, batches: Iterable[Batch], loss: Loss, accumulate: int = 1) -> list[torch.Tensor]:
    """Score heads by the mean over samples of |∂L/∂ξ|, ξ = 1 being a factor on the head's output.

    Source: Michel et al., 2019, eq. 3. In a block shared by several layers, ξ applies in all of them.

    Args:
        model: An early-exit model.
        batches: Labelled batches.
        loss: Maps a batch to a scalar, a mean over its samples.
        accumulate: Parts of each batch.

    Returns:
        (heads,) per block.
    """
    blocks = _blocks(model)
    totals = [torch.zeros(block.heads, device=block.output.weight.device) for block in blocks]
    count = 0
    with _evaluation_mode(model):
        for part in itertools.chain.from_iterable(micro_batches(batch, accumulate) for batch in batches):
            samples = _num_samples(part)
            # Each sample has its own factors, so that one backward pass yields the derivatives of every sample.
            factors = [torch.ones(samples, len(total), device=total.device, requires_grad=True) for total in totals]
            with contextlib.ExitStack() as hooks:
                for block, factor in zip(blocks, factors, strict=True):
                    hooks.enter_context(block.output.register_forward_pre_hook(_times(factor)))
                gradients = torch.autograd.grad(loss(part), factors, materialize_grads=True)
            for total, gradient in zip(totals, gradients, strict=True):
                total += gradient.abs().sum(0) * samples  # the loss is a mean over samples
            count += samples
    return [total / max(1, count) for total in totals]


def weight_importance(model: Any, batches: Iterable[Batch], loss: Loss, accumulate: int = 1) -> Importance:
    """Score heads and neurons by Σ |weight| · Σ over batches |∂L/∂weight|, as COST-EFF (Shen et al., 2022).

    A head's score sums over its columns of the projection after attention, a neuron's over its row of the inner and its
    column of the outer matrix.

    Args:
        model: An early-exit model.
        batches: Labelled batches.
        loss: Maps a batch to a scalar, a mean over its samples.
        accumulate: Parts of each batch.
    """
    blocks = _blocks(model)
    weights = [w for b in blocks for w in (b.output.weight, b.inner.weight, b.outer.weight)]
    sums = [torch.zeros_like(w) for w in weights]
    with _evaluation_mode(model), _gradients_enabled(weights):
        for batch in batches:
            for total, gradient in zip(sums, _gradients(batch, loss, weights, accumulate), strict=True):
                total += gradient.abs()
    scores = iter([total * weight.detach().abs() for total, weight in zip(sums, weights, strict=True)])
    heads, neurons = [], []
    for block, output, inner, outer in zip(blocks, scores, scores, scores, strict=True):
        heads.append(output.sum(0).view(block.heads, block.head_size).sum(1))
        neurons.append(inner.sum(1) + outer.sum(0))
    return Importance(heads, neurons)


def _gradients(batch: Batch, loss: Loss, weights: list[torch.Tensor], accumulate: int) -> list[torch.Tensor]:
    """Compute ∂L/∂weight of a whole batch: the sum over its parts, before absolute values are taken."""
    sums = [torch.zeros_like(w) for w in weights]
    for part in micro_batches(batch, accumulate):
        share = _num_samples(part) / _num_samples(batch)
        gradients = torch.autograd.grad(loss(part) * share, weights, materialize_grads=True)
        for total, gradient in zip(sums, gradients, strict=True):
            total += gradient
    return sums


def _num_samples(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _blocks(model: Any) -> list[Block]:
    return dense_blocks(getattr(model, "backbone", model))


def _times(factor: torch.Tensor) -> Callable[[nn.Module, tuple[torch.Tensor]], tuple[torch.Tensor]]:
    """Make a hook that multiplies the n parts of a linear layer's input (B, L, n · d) by a factor (B, n)."""

    def hook(module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        x = inputs[0]
        b, n = factor.shape
        return ((x.unflatten(-1, (n, -1)) * factor.view(b, 1, n, 1)).flatten(-2),)

    return hook


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode with gradients; restores the former mode."""
    training = model.training
    model.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        model.train(training)


@contextlib.contextmanager
def _gradients_enabled(weights: list[torch.Tensor]) -> Iterator[None]:
    """Enable gradients of frozen weights."""
    frozen = [w for w in weights if not w.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
