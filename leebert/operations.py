"""What a model costs: multiply-adds up to each exit, and parameters.

A multiply-add is one product and its sum within a matrix product, an attention product or a convolution; what is
element by element (activations, normalisation, softmax) and looking up embeddings is not counted. Half of what
`torch.utils.flop_counter` counts as floating-point operations.
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
    """How many there are, shared ones once; `computing` leaves out tables that are only looked up (`nn.Embedding`)."""

    total: int
    computing: int


def parameters(model: nn.Module) -> Parameters:
    """A model's parameters, counted."""
    total = sum(p.numel() for p in model.parameters())
    tables = {p for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    return Parameters(total, total - sum(p.numel() for p in tables))


def multiply_adds(model: Any, batch: Batch) -> tuple[int, ...]:
    """The multiply-adds of inference (:func:`leebert.inference.infer`) that leaves at each exit, (M,), for a whole batch.

    Counted while it runs: what comes before the layers, the layers up to the exit, and every exit on the way.
    """
    training = model.training
    model.eval()
    # Of torch's attention kernels for CPUs only the plain one, two matrix products, can be counted.
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
    """What the network of a stage costs: its parameters, and the multiply-adds up to each of its exits, (M,)."""

    stage: str
    parameters: Parameters
    multiply_adds: tuple[int, ...]


def of_stages(model: Any, config: TrainConfig, batch: Batch) -> list[StageCosts]:
    """The costs of a method's network, stage by stage, without training; multiply-adds are for the whole batch.

    `model` is what training starts from; it is taken apart as the stages say. Of what a stage decides by looking at data
    only how much goes counts, which is the same without.
    """
    found = []
    for stage in method(config, model.num_exits):
        model = stage.shape(model)
        found.append(StageCosts(stage.name, parameters(model), multiply_adds(model, batch)))
    return found


class _Meter:
    """A criterion under which no sample exits, which reads the counter at every exit but the last."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self.counter = counter
        self.counts: list[int] = []

    def step(self, logits: torch.Tensor, state: CriterionState) -> tuple[torch.Tensor, CriterionState]:
        self.counts.append(self.counter.get_total_flops())
        return torch.zeros(len(logits), dtype=torch.bool, device=logits.device), None
