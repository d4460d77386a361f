"""Inference that stops: layer by layer, and the rows that leave are taken out of the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from leebert.exits import Strategy
from leebert.runtime import Runtime


@dataclasses.dataclass(frozen=True)
class Answer:
    """What early-exit inference says of a batch: logits (B, K) of the exit that answered, and its layer (B,) from 1."""

    logits: torch.Tensor
    layers: torch.Tensor


@torch.inference_mode()
def infer(model: Any, batch: Mapping[str, torch.Tensor], strategy: Strategy, runtime: Runtime) -> Answer:
    """Run the layers one after the other until every row has left (sections 2.3, 4.4). `model` must be in eval mode.

    After each exit but the last, the rows that `strategy` lets go are removed from states and mask, so that the
    following layers work on those that are left; at batch size 1 computing simply stops.
    """
    batch = {name: t.to(runtime.device) for name, t in batch.items() if name != "labels"}
    with runtime.autocast():
        states, mask = model.stack.begin(batch)
        attention = batch.get("attention_mask")
        b = len(states)
        m = model.num_exits
        answers = torch.empty(b, model.config.num_labels, device=runtime.device)
        layers = torch.full((b,), model.exit_layers[-1], device=runtime.device)
        rows = torch.arange(b, device=runtime.device)
        state: Any = None
        exits = {layer: index for index, layer in enumerate(model.exit_layers)}
        for ran, layer in enumerate(model.stack.layers(), start=1):
            states = layer(states, mask)
            index = exits.get(ran)
            if index is None:
                continue
            logits = model.heads(model.pool(states, attention).unsqueeze(0), start=index)[0]  # (b, K)
            if index == m - 1:
                answers[rows] = logits
                break
            leaves, state = strategy.step(logits, state)
            if not leaves.any():
                continue
            answers[rows[leaves]] = logits[leaves]
            layers[rows[leaves]] = ran
            if leaves.all():
                break
            stays = ~leaves
            rows, states = rows[stays], states[stays]
            mask = None if mask is None else mask[stays]
            attention = None if attention is None else attention[stays]
            state = _kept(state, stays)
    return Answer(answers, layers)


def _kept(state: Any, stays: torch.Tensor) -> Any:
    if state is None:
        return None
    if isinstance(state, tuple):
        return tuple(_kept(part, stays) for part in state)
    return state[stays]
