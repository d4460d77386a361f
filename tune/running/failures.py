"""Classify why a trial ended early, and choose where its next attempt runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from leebert.errors import CacheError, CheckpointError, LeebertError, StorageError
from tune.store.history import Placement

Kind = Literal["error", "hang", "node", "gpu_memory", "host_memory", "refused", "storage", "mismatch", "diverged"]

#: How often a configuration is tried again after its process died; failures of :data:`UNCOUNTED` kinds don't count.
RETRIES = 2

#: Kinds of failure that don't use up retries: a lost or preempted node, and memory that ran out, after which the next
#: attempt gets another placement.
UNCOUNTED: tuple[Kind, ...] = ("node", "gpu_memory", "host_memory")

#: The most failures of any kind: a configuration may itself crash its nodes.
MOST = 20

#: The sweep stops when so many configurations failed for the first time before any trained an epoch.
HOPELESS = 3

#: Messages of PyTorch's allocator, the CUDA driver (for a context, for example), cuBLAS and cuDNN.
OUT_OF_GPU_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)

#: Failures of a node or the storage, which every configuration would meet: the sweep stops.
STOPPING: tuple[Kind, ...] = ("storage", "mismatch")


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a trial ended early, in a form that Ray transports."""

    kind: Kind
    message: str

    @property
    def last_line(self) -> str:
        """The last line of the message, shortened: of a traceback, the error itself."""
        return self.message.strip().splitlines()[-1][:300]


def of_exception(error: Exception) -> Failure | None:
    """Classify an exception that a trial raised.

    Args:
        error: The exception.

    Returns:
        The failure; None for an unknown exception, whose traceback is needed.
    """
    if isinstance(error, StorageError):
        return Failure("storage", str(error))
    if isinstance(error, CacheError):  # all trials share the cache, and preparing a session rebuilds it
        return Failure("storage", f"{error}; resuming the sweep rebuilds it")
    if isinstance(error, CheckpointError):
        return Failure("error", str(error))  # for example of another precision: the next node may fit
    if isinstance(error, LeebertError):
        return Failure("refused", str(error))
    if isinstance(error, MemoryError):
        return Failure("host_memory", "the node has no memory left for this trial")
    import torch

    # cuBLAS and cuDNN raise a plain RuntimeError.
    message = str(error)
    if isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in message for text in OUT_OF_GPU_MEMORY)
    ):
        return Failure("gpu_memory", message.splitlines()[0])
    return None


def of_death(error: BaseException | None, hung: Path) -> Failure:
    """Classify the end of a trial's process or node, as the driver sees it.

    Args:
        error: Ray's error; None if there is none.
        hung: The file to which the trial's watchdog writes when it ends the process.

    Returns:
        The failure.
    """
    from ray.exceptions import NodeDiedError, OutOfMemoryError

    cause = getattr(error, "cause", None) or error
    if isinstance(cause, Exception) and (recognised := of_exception(cause)):
        return recognised
    message = str(cause) if cause is not None else "the trial's process died"
    if isinstance(cause, OutOfMemoryError):
        return Failure("host_memory", message.strip().splitlines()[0])
    if getattr(cause, "preempted", False) or isinstance(cause, NodeDiedError) or "its node has died" in message:
        return Failure("node", "its node was lost")
    if hung.exists() and hung.stat().st_size:
        return Failure("hang", f"training requested no batch for too long; the stacks of its threads: {hung}")
    return Failure("error", message)


def placement(failures: Sequence[Mapping[str, Any]], batch_size: int, gpus: float) -> Placement | None:
    """Choose the placement of the next attempt after failures for lack of memory.

    First, a trial that shared a GPU or node runs alone on it, which does not change the result. Then gradients
    are accumulated over 2, 4, … micro-batches of the same batch, which changes the last digits.

    Args:
        failures: The ledger's records of the configuration's failures.
        batch_size: Samples that one forward pass takes now.
        gpus: GPUs of one trial; below 1, trials share a GPU.

    Returns:
        The placement; None if nothing remains to try.
    """
    gpu = sum(f.get("reason") == "gpu_memory" for f in failures)
    host = sum(f.get("reason") == "host_memory" for f in failures)
    moves = min(gpu, 1 if 0 < gpus < 1 else 0) + min(host, 1)
    accumulate = 1 << (gpu + host - moves)
    alone: Literal["", "gpu", "node"] = "node" if host else "gpu" if gpu else ""
    return Placement(alone, accumulate) if accumulate <= max(1, batch_size) else None
