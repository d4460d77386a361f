"""What the last digits of a result depend on besides code, data and seeds: the kernels that compute it.

Measured in docs/decisions/reproducibility.md: on one machine every bit follows from these, at any load.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

#: Variables by which PyTorch, oneDNN, MKL and CUDA are told to take other kernels. Numbers of threads are not among them:
#: those that are in use are recorded themselves.
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
    """What chooses this process's kernels, JSON-ready; what the system doesn't tell is left out.

    `omp_threads` and `mkl_threads` are those that the libraries would use now, whatever the environment asked for.
    """
    found: dict[str, Any] = {f"{library}_threads": int(n) for library, n in _COUNTS.findall(_parallel_info())}
    if name := processor():
        found["processor"] = name
    found["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    found["onednn"] = bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)
    found["matmul_precision"] = torch.get_float32_matmul_precision()
    found["steered_by"] = {name: environment[name] for name in STEERING if name in environment}
    return found


def processor() -> str:
    """The processor's name as the system tells it, else the machine's kind; empty where neither is known."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _parallel_info() -> str:
    return torch.__config__.parallel_info()
