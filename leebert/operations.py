"""Costs of a model: multiply-adds up to each exit, and parameters.

A multiply-add is one product and one sum in a matrix product, an attention product or a convolution. Element-wise operations
(activations, normalisation, softmax) and embedding look-ups don't count. One multiply-add is two floating-point operations of
`torch.utils.flop_counter`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from leebert.config import TrainConfig
from leebert.exits.criterion import CriterionState
from leebert.inference import infer
from leebert.record import Batch
from leebert.runtime import Runtime
from leebert.stages import method


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Numbers of parameters; shared ones count once.

    Attributes:
        total: All parameters.
        computing: All except embedding tables (`nn.Embedding`).
    """

    total: int
    computing: int


def parameters(model: nn.Module) -> Parameters:
    """Count a model's parameters."""
    total = sum(p.numel() for p in model.parameters())
    tables = {p for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    return Parameters(total, total - sum(p.numel() for p in tables))


def multiply_adds(model: Any, batch: Batch) -> tuple[int, ...]:
    """Count the multiply-adds of early-exit inference (:func:`leebert.inference.infer`) up to each exit.

    The counts include everything before the layers, the layers up to the exit, and all earlier exits.

    Args:
        model: An early-exit model.
        batch: A batch of B samples.

    Returns:
        (M,) multiply-adds for the whole batch.
    """
    training = model.training
    model.eval()
    # Of torch's attention kernels for CPUs, the counter supports only the plain one, two matrix products.
    counter = FlopCounterMode(display=False)
    meter = _Meter(counter)
    try:
        with sdpa_kernel(SDPBackend.MATH), counter:
            infer(model, batch, meter, Runtime(next(model.parameters()).device))
    finally:
        model.train(training)
    return tuple(flops // 2 for flops in (*meter.counts, counter.get_total_flops()))


@dataclasses.dataclass(frozen=True)
class StageCosts:
    """Costs of a stage's network.

    Attributes:
        stage: Name of the stage.
        parameters: Its parameters.
        multiply_adds: (M,) multiply-adds up to each exit.
    """

    stage: str
    parameters: Parameters
    multiply_adds: tuple[int, ...]


def of_stages(model: Any, config: TrainConfig, batch: Batch) -> list[StageCosts]:
    """Compute the costs of each stage's network without training.

    A stage that prunes by importance removes as many parts without data, so its costs are the same.

    Args:
        model: The model before training; it is changed.
        config: The training options.
        batch: A batch of B samples; multiply-adds are for the whole batch.
    """
    costs = []
    for stage in method(config, model.num_exits):
        model = stage.shape(model)
        costs.append(StageCosts(stage.name, parameters(model), multiply_adds(model, batch)))
    return costs


class _Meter:
    """A criterion that reads the counter at every exit but the last, and lets no sample exit."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self.counter = counter
        self.counts: list[int] = []

    def step(self, logits: torch.Tensor, state: CriterionState) -> tuple[torch.Tensor, CriterionState]:
        self.counts.append(self.counter.get_total_flops())
        return torch.zeros(len(logits), dtype=torch.bool, device=logits.device), None
