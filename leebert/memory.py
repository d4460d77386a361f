"""How much memory training takes, without training: the real step runs on tensors that have shapes and no numbers.

PyTorch's fake tensors go through forward, backward and optimiser like real ones while a tracker adds up what is alive.
So the estimate holds for every model with `record(batch)`, algorithm, teacher set and precision, and needs neither the
device nor its memory. For a GPU, the kernels that keep other things than the CPU's (dropout, attention) are replaced by
theirs. Compared with real runs on a CPU (tests/test_memory.py); on CUDA it was not measured.
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

#: Bytes that a process takes before the first tensor: the CUDA context with the libraries' workspaces; on a CPU the
#: Python process with its libraries.
BEFORE = {"cuda": 800_000_000, "cpu": 600_000_000}
#: Share on top of the tensors for what the allocator rounds up and can't join.
SLACK = 0.1


@dataclasses.dataclass(frozen=True)
class TrainingMemory:
    """Bytes on the device of training, at the fullest moment of each phase.

    parameters, gradients, moments: of θ, the last two of what trains; `moments` is all that the optimiser keeps.
    activations: what a θ step or the forwards for ω need beside these, casts of weights and temporaries included.
    evaluation: what a forward on an evaluation batch needs.
    allowance: for the allocator and for the process itself (:data:`SLACK`, :data:`BEFORE`).
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


def text_batch(rows: int, length: int) -> Batch:
    """A labelled batch of full-length texts, (rows, length), as a tokeniser makes it."""
    ids = {name: torch.zeros(rows, length, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    return {**ids, "token_type_ids": ids["input_ids"].clone(), "labels": torch.zeros(rows, dtype=torch.long)}


def image_batch(rows: int, size: int) -> Batch:
    """A labelled batch of colour images of (size, size) pixels, as :mod:`leebert.images.arrays` makes it."""
    return {
        "images": torch.zeros(rows, size, size, 3, dtype=torch.uint8),
        "labels": torch.zeros(rows, dtype=torch.long),
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
    """The memory of training `model` on batches of `batch_size` rows of `length` tokens (or pixels a side) as `config` says.

    Of the model only shapes count: it may lie on the `meta` device, and is left as it is. `runtime` (default: this
    machine's) need not exist here. `batch` makes a batch of (rows, length) for models of other data than text, where
    all tensors that are made have shapes only. Of several stages the one that needs most counts.
    """
    runtime = runtime or Runtime.of(config.precision)
    stages = stages or method(config, model.num_exits)
    with FakeTensorMode(allow_non_fake_inputs=True), _kernels(runtime.device.type):
        fake = _fake(model)
        if runtime.device.type != "cpu":
            _use_torchs_attention(fake)
        needs: list[TrainingMemory] = []
        teachers: dict[str, Any] = {}
        check(stages, fake, config)
        for stage in stages:
            # What a transformation may look at needs less than a step of θ, in the same parts: no moments, gradients of
            # fewer weights, and activations without dropout.
            fake = stage.shape(fake)
            teacher = teachers.get(stage.teacher or "")
            needs.append(_stage(fake, stage, batch_size, length, config, runtime, batch, teacher))
            if any(later.teacher == stage.name for later in stages):
                teachers[stage.name] = _fake(fake)
    return max(needs, key=lambda need: need.total)


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
    # Two parts show all that any number of them needs: the second's activations beside the first's gradients.
    simulated = min(parts, 2)
    rows = simulated * math.ceil(batch_size / parts)
    on_cpu = Runtime(torch.device("cpu"), runtime.dtype)  # fake tensors of a GPU need a build of torch for it
    taught_by = [] if teacher is None else [*teacher.parameters(), *teacher.buffers()]
    weights = [*model.parameters(), *model.buffers(), *taught_by]
    with _Tracker(weights) as tracker:
        level = StageLevel(model, stage, config.model_copy(update={"accumulate": simulated}), on_cpu, (0,), teacher)
        if hasattr(model, "path"):
            model.path = None  # which layers run is drawn at random; all of them is the most
        for parameter in level.theta.values():
            parameter.grad = torch.zeros_like(parameter)
        level.theta_optimizer.step()
        level.theta_optimizer.zero_grad(set_to_none=True)
        moments = tracker.alive
        model.train()
        tracker.peak = 0
        level.start_epoch(itertools.repeat(batch(rows, length)))
        stage.algorithm.step(level, batch(rows, length), 0)
        if stage.algorithm.splits_data:  # the forwards for ω, which a cycle may have in its last step only
            level.losses(batch(rows, length))
        training = tracker.peak - moments
        model.eval()
        tracker.peak = 0
        with torch.no_grad(), on_cpu.autocast():
            model.record(batch(config.eval_batch_size, length))
        evaluation = tracker.peak - moments
    gradients = _bytes(level.theta.values())
    found = TrainingMemory(
        parameters=_bytes(weights),
        gradients=gradients,
        moments=moments,
        activations=max(0, training - gradients),
        evaluation=evaluation,
        allowance=0,
    )
    kind = "cpu" if runtime.device.type == "cpu" else "cuda"
    return dataclasses.replace(found, allowance=BEFORE[kind] + int(SLACK * found.tensors))


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(t.untyped_storage().nbytes() for t in tensors)


def _fake(model: Any) -> Any:
    """A copy of a module whose parameters and buffers have shapes only.

    They are made anew: a deep copy of a fake tensor would copy the mode that it belongs to with all that this refers to
    by bare addresses, which are then freed twice.
    """
    fakes: dict[int, torch.Tensor] = {}
    for real in [*model.parameters(), *model.buffers()]:
        fake = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype)
        fakes[id(real)] = nn.Parameter(fake, real.requires_grad) if isinstance(real, nn.Parameter) else fake
    return copy.deepcopy(model, fakes)  # the memo: what it holds is taken for the copy


def _use_torchs_attention(model: nn.Module) -> None:
    """Our own attention is for CPUs and leaves other devices to torch's, which fake tensors can't tell."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", None) == ATTENTION:
            config._attn_implementation = "sdpa"


@contextlib.contextmanager
def _kernels(device: str) -> Iterator[None]:
    with contextlib.nullcontext() if device == "cpu" else _GpuKernels():
        yield


class _GpuKernels(TorchFunctionMode):
    """What a GPU runs where a CPU would keep more: fused dropout, and attention without an L × L matrix per head."""

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
    """(B, heads, L, d) by the memory-efficient kernel, which is what CUDA takes where there is a mask."""
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
    """Adds up the bytes of the storages that operators make within this context, as long as each is alive.

    `known` tensors were there before: their storages, which views of them share, don't count.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.alive = self.peak = 0
        self.seen = weakref.WeakSet(t.untyped_storage() for t in known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self.seen:
            return
        self.seen.add(storage)
        size = storage.nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.alive -= size
