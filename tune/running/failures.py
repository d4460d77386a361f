"""Why a trial ended before its work was done, and what follows from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from leebert.errors import CacheError, CheckpointError, LeebertError, StorageError
from tune.store.history import Placement

Kind = Literal["error", "hang", "node", "gpu_memory", "host_memory", "refused", "storage", "mismatch", "diverged"]

#: How often a configuration whose process died is tried again; what is no fault of its own doesn't count.
RETRIES = 2

#: Failures that are tried again without being counted: a node that was lost or taken away (spot machines are), and
#: memory that ran out, which is answered with another placement instead.
UNCOUNTED: tuple[Kind, ...] = ("node", "gpu_memory", "host_memory")

#: Not even those for ever: a configuration may be what takes its nodes down.
MOST = 20

#: Where so many configurations were given up, none for the second time, before one of the sweep had trained an epoch, no
#: other will fare better.
HOPELESS = 3

#: How the parts of CUDA say it: PyTorch's allocator, the driver (for a context, say), cuBLAS, cuDNN.
OUT_OF_GPU_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)

#: What is wrong with a node or the storage, not with the configuration: others would meet it too, so the sweep stops.
STOPPING: tuple[Kind, ...] = ("storage", "mismatch")


@dataclasses.dataclass(frozen=True)
class Failure:
    """One trial's end, in a form that travels through Ray."""

    kind: Kind
    message: str


def of_exception(error: Exception) -> Failure | None:
    """What a trial's own exception means; None where only its traceback tells."""
    if isinstance(error, StorageError):
        return Failure("storage", str(error))
    if isinstance(error, CacheError):  # all trials share it, and what prepares a session makes it again
        return Failure("storage", f"{error}; it is made again when the sweep is resumed")
    if isinstance(error, CheckpointError):
        return Failure("error", str(error))  # of a node with another precision, say: the next one may fit
    if isinstance(error, LeebertError):
        return Failure("refused", str(error))
    if isinstance(error, MemoryError):
        return Failure("host_memory", "the node has no memory left for this trial")
    import torch

    # cuBLAS and cuDNN can't say it with PyTorch's own class.
    message = str(error)
    if isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in message for text in OUT_OF_GPU_MEMORY)
    ):
        return Failure("gpu_memory", message.splitlines()[0])
    return None


def of_death(error: BaseException | None, hung: Path) -> Failure:
    """What the end of a trial's process or node means, seen from the driver; `hung` is where a watchdog reports."""
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
        return Failure("hang", f"no batch was asked for in too long; where it stood: {hung}")
    return Failure("error", message)


def placement(failures: Sequence[Mapping[str, Any]], batch_size: int, gpus: float) -> Placement | None:
    """What to try after these failures (the ledger's records), or None where nothing is left to try.

    First alone, where it shared its GPU (`gpus` of a trial below 1) or node until now: that changes nothing in the
    result. Then with gradients accumulated over 2, 4, … micro-batches of the same batch, which changes the last digits.
    """
    gpu = sum(f.get("reason") == "gpu_memory" for f in failures)
    host = sum(f.get("reason") == "host_memory" for f in failures)
    moves = min(gpu, 1 if 0 < gpus < 1 else 0) + min(host, 1)
    accumulate = 1 << (gpu + host - moves)
    alone: Literal["", "gpu", "node"] = "node" if host else "gpu" if gpu else ""
    return Placement(alone, accumulate) if accumulate <= max(1, batch_size) else None
