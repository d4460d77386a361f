"""A step of θ that was taken, as something to differentiate."""

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
    """`record` as a forward, the one method that :func:`torch.func.functional_call` calls."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Record:
        record: Record = self.model.record(batch)
        return record


@dataclasses.dataclass(frozen=True)
class TakenStep:
    """θ' = θ + u(g) with g = ∇θ L_B1(θ, ω): the step as it was taken, clipping included (`leebert.optim.contract.LookAhead`).

    model, optimizer: as the step left them; θ' is the model's.
    objective, state: what L was before the step.
    start: θ by its parameters' names in the model; all vectors of θ's size have its order.
    random: the generators before the step's forward, that is its dropout masks.
    parts: the batch as it was taken in parts, each with the record of its forward, without a graph.
    gradients: g as the optimiser got it, after clipping; zeros for a parameter without one.
    clipped: the factor ≤ 1 by which clipping multiplied g, a scalar.
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

    @torch.no_grad()
    def pullback(self, v: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """(∂θ'/∂g)ᵀ v, with −λ1 in it: through the optimiser's step (:mod:`leebert.optim.derivative`), then clipping.

        Clipping makes k·g of g with k = c/‖g‖, whose derivative is k·(1 − ĝĝᵀ): the length of g no longer counts.
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
        """l on the step's batch at θ + distance·direction, (n,), with the step's dropout masks and detached teachers.

        In θ's own precision whatever the step's was: bf16 would round a short distance away. (On a GPU other kernels
        then draw other masks from the same state; both ends of a difference still share theirs.) Nothing of the model
        changes, running statistics included.
        """
        at = zip(self.start.items(), direction, strict=True)
        moved = {f"model.{name}": torch.addcmul(p, along, distance) for (name, p), along in at}
        buffers = {f"model.{name}": b.clone() for name, b in self.model.named_buffers()}
        recorder, rows = _Recorder(self.model), sum(len(batch["labels"]) for batch, _ in self.parts)
        terms = []
        with self.random.replayed():
            for batch, at_start in self.parts:
                record = torch.func.functional_call(recorder, (moved, buffers), (batch,))
                share = len(batch["labels"]) / rows
                terms.append(self.objective.terms(record, self.state, teacher=at_start) * share)
        return torch.stack(terms).sum(dim=0)


def _inner(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> torch.Tensor:
    """The inner product of two vectors that come in parts."""
    return torch.stack([torch.dot(x.flatten(), y.flatten()) for x, y in zip(a, b, strict=True)]).sum()
