"""The kernels that computed a result: with code, data and seeds they determine every bit.

docs/decisions/reproducibility.md has measurements on one machine under load.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Environment variables that select kernels of PyTorch, oneDNN, MKL and CUDA. Numbers of threads are recorded separately.
STEERING = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "TORCH_MKLDNN_MATMUL_MIN_DIM",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_DEBUG_CPU_TYPE",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG",
)

_COUNTS = re.compile(r"^\s*(omp|mkl)_get_max_threads\(\) : (\d+)$", re.MULTILINE)


def kernels(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Collect the settings that select this process's kernels.

    Args:
        environment: Environment variables.

    Returns:
        JSON-ready values; unknown ones are omitted. `omp_threads` and `mkl_threads` are the numbers that the libraries use
        now, regardless of the environment.
    """
    import torch

    settings: dict[str, Any] = {f"{library}_threads": int(n) for library, n in _COUNTS.findall(_parallel_info())}
    if name := processor():
        settings["processor"] = name
    settings["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    settings["onednn"] = bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)
    settings["matmul_precision"] = torch.get_float32_matmul_precision()
    settings["steered_by"] = {name: environment[name] for name in STEERING if name in environment}
    return settings


def processor() -> str:
    """Return the processor's name, else its architecture; empty if both are unknown."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def processor_flags() -> frozenset[str]:
    """Return the CPU's feature flags; empty if the system does not list them."""
    return frozenset(_cpuinfo("flags", "features").split())


def cores() -> int:
    """Count the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpuinfo(*keys: str) -> str:
    """The first value of one of these keys in Linux's /proc/cpuinfo; empty without one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.lower().startswith(keys)), "")


def _parallel_info() -> str:
    import torch

    return torch.__config__.parallel_info()
