"""Early-exit inference: run layer by layer, and remove the samples that exit from the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from leebert.deprecated import renamed_arguments
from leebert.exits.arrays import select
from leebert.exits.criterion import ExitCriterion
from leebert.runtime import Runtime


class Layered(Protocol):
    """A model with M exits that can run from one exit to the next.

    Its state between layers is a tensor whose first dimension is the sample, None, or a tuple of these, so that
    :func:`infer` can remove samples from it.
    """

    num_exits: int

    def begin(self, batch: Mapping[str, torch.Tensor]) -> Any:
        """Make the input of the first layer.

        Args:
            batch: Tensors by name, with B samples.

        Returns:
            The state before the first layer.
        """
        ...

    def advance(self, state: Any, exit_: int) -> tuple[Any, torch.Tensor]:
        """Run the layers from the previous exit to the next one.

        Args:
            state: The state at the previous exit, for the samples that have not exited.
            exit_: The next exit, from 0.

        Returns:
            The new state, and the exit's logits (B, K), float32.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Answer:
    """The result of early-exit inference on a batch.

    Attributes:
        logits: (B, K) of each sample's exit.
        layers: (B,) exit layer of each sample, from 1.
    """

    logits: torch.Tensor
    layers: torch.Tensor


@renamed_arguments(strategy="criterion")
@torch.inference_mode()
def infer(model: Layered, batch: Mapping[str, torch.Tensor], criterion: ExitCriterion, runtime: Runtime) -> Answer:
    """Run the layers of a model until every sample has exited (sections 2.3, 4.4 of the paper).

    After each exit but the last, samples that exit are removed from the model's state, so that the following layers process
    only the remaining ones.

    Args:
        model: A model in evaluation mode.
        batch: Tensors by name, with B samples; `labels` are ignored.
        criterion: The exit criterion at its threshold (:func:`leebert.exits.replay.make_criterion`).
        runtime: Device and precision.

    Returns:
        Logits and exit layer of each sample.
    """
    batch = {name: t.to(runtime.device) for name, t in batch.items() if name != "labels"}
    m = model.num_exits
    layers_run = getattr(model, "exit_layers", range(1, m + 1))
    with runtime.autocast():
        running = model.begin(batch)
        running, logits = model.advance(running, 0)
        outputs = torch.empty_like(logits)
        layers = torch.full((len(logits),), layers_run[-1], device=runtime.device)
        positions = torch.arange(len(logits), device=runtime.device)
        state: Any = None
        for index in range(m - 1):
            exited, state = criterion.step(logits, state)
            if exited.any():
                outputs[positions[exited]] = logits[exited]
                layers[positions[exited]] = layers_run[index]
                if exited.all():
                    return Answer(outputs, layers)
                remaining = ~exited
                positions, running, state = positions[remaining], select(running, remaining), select(state, remaining)
            running, logits = model.advance(running, index + 1)
        outputs[positions] = logits
    return Answer(outputs, layers)
