"""Estimate the memory of training by a real step on tensors with shapes but no values.

PyTorch's fake tensors pass through forward, backward and optimiser like real ones, while a tracker sums the live bytes. So the
estimate covers every model with `record(batch)`, method, teacher set and precision, and needs neither the device nor its
memory. For a GPU, kernels that keep other tensors than the CPU's (dropout, attention) are replaced by the GPU's. The estimate
was compared with real runs on a CPU (tests/test_memory.py), not on CUDA.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from leebert.config import TrainConfig
from leebert.dropout import ATTENTION
from leebert.level import StageLevel
from leebert.record import Batch
from leebert.runtime import Runtime
from leebert.stages import Stage, check, method

#: Bytes of a process before the first tensor: on CUDA the context and the libraries' workspaces, on a CPU the Python process
#: with its libraries.
BEFORE = {"cuda": 800_000_000, "cpu": 600_000_000}
#: Share added for the allocator's rounding and fragmentation.
SLACK = 0.1


@dataclasses.dataclass(frozen=True)
class TrainingMemory:
    """Bytes on the device in training, at the peak of each phase.

    Attributes:
        parameters: All parameters and buffers, those of teachers included.
        gradients: Gradients of the parameters that train.
        moments: State of the optimiser.
        activations: Further bytes of a θ step or of the forward passes for ω, casts of weights and temporaries included.
        evaluation: Further bytes of a forward pass on an evaluation batch.
        allowance: For the allocator and the process (:data:`SLACK`, :data:`BEFORE`).
    """

    parameters: int
    gradients: int
    moments: int
    activations: int
    evaluation: int
    allowance: int

    @property
    def tensors(self) -> int:
        """Bytes of all tensors: training and evaluation alternate, and evaluation has no gradients."""
        return self.parameters + self.moments + max(self.gradients + self.activations, self.evaluation)

    @property
    def total(self) -> int:
        """Bytes that the device must have free."""
        return self.tensors + self.allowance


def text_batch(samples: int, length: int) -> Batch:
    """Make a labelled batch of texts of full length.

    Args:
        samples: B.
        length: L, tokens per text.

    Returns:
        `input_ids`, `attention_mask` and `token_type_ids` (B, L), and `labels` (B,).
    """
    ids = {name: torch.zeros(samples, length, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    return {**ids, "token_type_ids": ids["input_ids"].clone(), "labels": torch.zeros(samples, dtype=torch.long)}


def image_batch(samples: int, size: int) -> Batch:
    """Make a labelled batch of colour images, as from :mod:`leebert.images.arrays`.

    Args:
        samples: B.
        size: S, pixels of an image's side.

    Returns:
        `images` (B, S, S, 3) uint8, and `labels` (B,).
    """
    return {
        "images": torch.zeros(samples, size, size, 3, dtype=torch.uint8),
        "labels": torch.zeros(samples, dtype=torch.long),
    }


def estimate(
    model: Any,
    batch_size: int,
    length: int,
    config: TrainConfig,
    *,
    runtime: Runtime | None = None,
    batch: Callable[[int, int], Batch] = text_batch,
    stages: tuple[Stage, ...] | None = None,
) -> TrainingMemory:
    """Estimate the memory of training a model.

    Args:
        model: The model; only its shapes matter, so it can be on the `meta` device. It is not changed.
        batch_size: B.
        length: Tokens per sample, or width and height of images in pixels.
        config: The training options.
        runtime: Device and precision; the device need not exist here. None: this machine's.
        batch: Makes a batch from (B, length).
        stages: The stages; None: those of the method.

    Returns:
        The memory of the stage that needs most.
    """
    runtime = runtime or Runtime.of(config.precision)
    stages = stages or method(config, model.num_exits)
    with FakeTensorMode(allow_non_fake_inputs=True), _kernels(runtime.device.type):
        fake = _fake(model)
        if runtime.device.type != "cpu":
            _use_torchs_attention(fake)
        estimates: list[TrainingMemory] = []
        teachers: dict[str, Any] = {}
        check(stages, fake, config)
        for stage in stages:
            # A transformation that examines data needs less than a step of θ: no moments, gradients of fewer weights, and
            # activations without dropout.
            fake = stage.shape(fake)
            teacher = teachers.get(stage.teacher or "")
            estimates.append(_stage(fake, stage, batch_size, length, config, runtime, batch, teacher))
            if any(later.teacher == stage.name for later in stages):
                teachers[stage.name] = _fake(fake)
    return max(estimates, key=lambda estimate: estimate.total)


def _stage(
    model: Any,
    stage: Stage,
    batch_size: int,
    length: int,
    config: TrainConfig,
    runtime: Runtime,
    batch: Callable[[int, int], Batch],
    teacher: Any,
) -> TrainingMemory:
    parts = min(config.accumulate, batch_size)
    # Two parts have the same peak as more: the second part's activations beside the first part's gradients.
    simulated = min(parts, 2)
    samples = simulated * math.ceil(batch_size / parts)
    on_cpu = Runtime(torch.device("cpu"), runtime.dtype)  # fake tensors of a GPU need a build of torch for it
    of_teacher = [] if teacher is None else [*teacher.parameters(), *teacher.buffers()]
    weights = [*model.parameters(), *model.buffers(), *of_teacher]
    with _Tracker(weights) as tracker:
        level = StageLevel(model, stage, config.model_copy(update={"accumulate": simulated}), on_cpu, (0,), teacher)
        if hasattr(model, "path"):
            model.path = None  # layers are skipped at random; the peak is with all of them
        for parameter in level.theta.values():
            parameter.grad = torch.zeros_like(parameter)
        level.theta_optimizer.step()
        level.theta_optimizer.zero_grad(set_to_none=True)
        moments = tracker.alive
        model.train()
        tracker.peak = 0
        level.start_epoch(itertools.repeat(batch(samples, length)))
        # The last step of a cycle needs most where ω is only learned there; the first one where it is not.
        for position in dict.fromkeys((0, getattr(stage.algorithm, "cycle_length", 1) - 1)):
            stage.algorithm.step(level, batch(samples, length), position)
        if stage.algorithm.splits_data:  # forward passes for ω can be in the last step of a cycle only
            level.losses(batch(samples, length))
        training = tracker.peak - moments
        model.eval()
        tracker.peak = 0
        with torch.no_grad(), on_cpu.autocast():
            model.record(batch(config.eval_batch_size, length))
        evaluation = tracker.peak - moments
    gradients = _bytes(level.theta.values())
    memory = TrainingMemory(
        parameters=_bytes(weights),
        gradients=gradients,
        moments=moments,
        activations=max(0, training - gradients),
        evaluation=evaluation,
        allowance=0,
    )
    kind = "cpu" if runtime.device.type == "cpu" else "cuda"
    return dataclasses.replace(memory, allowance=BEFORE[kind] + int(SLACK * memory.tensors))


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(t.untyped_storage().nbytes() for t in tensors)


def _fake(model: Any) -> Any:
    """Copy a module, with fake parameters and buffers.

    The tensors are new, because a deep copy of a fake tensor also copies its mode, whose raw pointers are then freed twice.
    """
    fakes: dict[int, torch.Tensor] = {}
    for real in [*model.parameters(), *model.buffers()]:
        fake = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype)
        fakes[id(real)] = nn.Parameter(fake, real.requires_grad) if isinstance(real, nn.Parameter) else fake
    return copy.deepcopy(model, fakes)  # deepcopy takes the fake tensors from this memo


def _use_torchs_attention(model: nn.Module) -> None:
    """Use torch's attention, as a GPU would: our attention selects by device, and fake tensors claim to be on a CPU."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", None) == ATTENTION:
            config._attn_implementation = "sdpa"


@contextlib.contextmanager
def _kernels(device: str) -> Iterator[None]:
    with contextlib.nullcontext() if device == "cpu" else _GpuKernels():
        yield


class _GpuKernels(TorchFunctionMode):
    """Replace CPU kernels by a GPU's, which keep less: fused dropout, and attention without an L × L matrix per head."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return _gpu_dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return _gpu_attention(*args, **kwargs)
        return func(*args, **kwargs)


def _gpu_dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    return torch.native_dropout(x, p, True)[0] if training and p > 0 else x


def _gpu_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Compute attention (B, heads, L, d) by the memory-efficient kernel, which CUDA uses with a mask."""
    if attn_mask is not None:
        attn_mask = torch.zeros(attn_mask.shape, dtype=query.dtype).expand(*query.shape[:-1], key.shape[-2])
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    keeps = torch.is_grad_enabled()
    output: torch.Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, keeps, dropout_p, is_causal, scale=scale
    )[0]
    return output


class _Tracker(TorchDispatchMode):
    """Sums the bytes of live storages that operators create within this context.

    Args:
        excluded: Earlier tensors; their storages, also in views of them, don't count.
    """

    def __init__(self, excluded: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.alive = self.peak = 0
        self.counted = weakref.WeakSet(t.untyped_storage() for t in excluded)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self.counted:
            return
        self.counted.add(storage)
        size = storage.nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.alive -= size
