"""A completed step of θ, for differentiation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from leebert.objective import Objective, ObjectiveState
from leebert.optim.derivative import through_step
from leebert.record import Batch, Record
from leebert.runtime import RandomState


class _Recorder(nn.Module):
    """`record` as `forward`, which :func:`torch.func.functional_call` calls."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Record:
        return Record.of(self.model, batch)


@dataclasses.dataclass(frozen=True)
class TakenStep:
    """The step θ' = θ + u(g) with g = ∇θ L_B1(θ, ω), clipping included (:class:`leebert.optim.contract.LookAhead`).

    Attributes:
        model: The model after the step, with θ'.
        optimizer: θ's optimiser after the step.
        objective: L.
        state: The objective's state before the step.
        start: θ by parameter name; all vectors of θ's size have this order.
        random: State of the generators before the step's forward pass, which determines its dropout masks.
        parts: The parts of the batch, each with its record, without a graph.
        gradients: g after clipping; zeros for parameters without a gradient.
        clipped: Factor ≤ 1 by which clipping multiplied g, a scalar.
        losses: l, (n,), of the step's forward pass.
        exact: Whether that pass ran in θ's precision, so that `losses` compare with :meth:`losses_at`.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    objective: Objective
    state: ObjectiveState
    start: dict[str, torch.Tensor]
    random: RandomState
    parts: Sequence[tuple[Batch, Record]]
    gradients: Sequence[torch.Tensor]
    clipped: torch.Tensor
    losses: torch.Tensor
    exact: bool

    @torch.no_grad()
    def pullback(self, v: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute (∂θ'/∂g)ᵀ v through the optimiser's step (:mod:`leebert.optim.derivative`) and clipping.

        Clipping maps g to k·g with k = c/‖g‖; its derivative is k·(1 − ĝĝᵀ).
        """
        named = dict(self.model.named_parameters())
        u = through_step(self.optimizer, [named[name] for name in self.start], self.gradients, v)
        along, square = _inner(self.gradients, u), _inner(self.gradients, self.gradients)
        share = torch.where(self.clipped < 1, along / square, 0)
        for x, g in zip(u, self.gradients, strict=True):
            x.addcmul_(g, share, value=-1).mul_(self.clipped)
        return u

    @torch.no_grad()
    def losses_at(self, direction: Sequence[torch.Tensor], distance: torch.Tensor) -> torch.Tensor:
        """Compute l, (n,), on the step's batch at θ + distance·direction, with the step's dropout masks and teachers.

        Runs in θ's precision, since bf16 would round a short distance to 0. (On a GPU, other kernels then draw other masks from
        the same state; both ends of a difference still have equal masks.) The model does not change, including running
        statistics.
        """
        pairs = zip(self.start.items(), direction, strict=True)
        moved = {f"model.{name}": torch.addcmul(p, along, distance) for (name, p), along in pairs}
        buffers = {f"model.{name}": b.clone() for name, b in self.model.named_buffers()}
        recorder, samples = _Recorder(self.model), sum(len(batch["labels"]) for batch, _ in self.parts)
        terms = []
        with self.random.replayed():
            for batch, at_start in self.parts:
                record = torch.func.functional_call(recorder, (moved, buffers), (batch,))
                share = len(batch["labels"]) / samples
                terms.append(self.objective.terms(record, self.state, teacher=at_start) * share)
        return torch.stack(terms).sum(dim=0)

    def losses_at_start(self) -> torch.Tensor:
        """Return l, (n,), on the step's batch at θ, in θ's precision: without a forward pass if the step had that, too."""
        if self.exact:
            return self.losses
        still = [torch.zeros((), device=p.device).expand_as(p) for p in self.start.values()]
        return self.losses_at(still, torch.zeros((), device=self.clipped.device))


def _inner(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> torch.Tensor:
    """Compute the inner product of two vectors given as lists of tensors."""
    return torch.stack([torch.dot(x.flatten(), y.flatten()) for x, y in zip(a, b, strict=True)]).sum()
