"""Inference that stops: layer by layer, and the rows that exit are taken out of the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from leebert.exits.criterion import ExitCriterion
from leebert.runtime import Runtime


class Layered(Protocol):
    """A model with M exits that can be run from one exit to the next, whatever its layers are.

    What it carries between layers is a tensor whose first dimension is the row, None, or a tuple of these: rows are
    taken out of it from outside.
    """

    num_exits: int

    def begin(self, batch: Mapping[str, torch.Tensor]) -> Any:
        """What the first layer takes."""
        ...

    def advance(self, state: Any, exit_: int) -> tuple[Any, torch.Tensor]:
        """Run the layers up to exit `exit_` (from 0) from the state behind the exit before; its logits (B, K), float32."""
        ...


@dataclasses.dataclass(frozen=True)
class Answer:
    """What early-exit inference says of a batch: logits (B, K) of the exit that answered, and its layer (B,) from 1."""

    logits: torch.Tensor
    layers: torch.Tensor


@torch.inference_mode()
def infer(model: Layered, batch: Mapping[str, torch.Tensor], criterion: ExitCriterion, runtime: Runtime) -> Answer:
    """Run the layers one after the other until every row has exited (sections 2.3, 4.4). `model` must be in eval mode.

    After each exit but the last, the rows that exit under `criterion` are removed from the model's state, so that the
    following layers work on those that remain; at batch size 1 computing simply stops.
    """
    batch = {name: t.to(runtime.device) for name, t in batch.items() if name != "labels"}
    m = model.num_exits
    layers_run = getattr(model, "exit_layers", range(1, m + 1))
    with runtime.autocast():
        running = model.begin(batch)
        running, logits = model.advance(running, 0)
        answers = torch.empty_like(logits)
        layers = torch.full((len(logits),), layers_run[-1], device=runtime.device)
        rows = torch.arange(len(logits), device=runtime.device)
        state: Any = None
        for index in range(m - 1):
            leaves, state = criterion.step(logits, state)
            if leaves.any():
                answers[rows[leaves]] = logits[leaves]
                layers[rows[leaves]] = layers_run[index]
                if leaves.all():
                    return Answer(answers, layers)
                stays = ~leaves
                rows, running, state = rows[stays], _kept(running, stays), _kept(state, stays)
            running, logits = model.advance(running, index + 1)
        answers[rows] = logits
    return Answer(answers, layers)


def _kept(state: Any, stays: torch.Tensor) -> Any:
    if state is None:
        return None
    if isinstance(state, tuple):
        return tuple(_kept(part, stays) for part in state)
    return state[stays]
