"""Use of CPU, memory and GPU during an epoch, under the names of MLflow's system metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping


class SystemUsage:
    """Measures in the process that it is made in. Shares of CPU time are means since the last call."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call of each only starts the measurement
        psutil.cpu_percent()

    def __call__(self) -> Mapping[str, float]:
        """Return the numbers of the whole machine, of this process, and of the GPU that it uses."""
        import psutil

        memory = psutil.virtual_memory()
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": round(memory.used / 1e6),
            "system_memory_usage_percentage": memory.percent,
            "process_cpu_percentage": self._process.cpu_percent(),
            "process_memory_megabytes": round(self._process.memory_info().rss / 1e6),
            **_gpu(),
        }


def _gpu() -> dict[str, float]:
    import torch

    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {}
    free, total = torch.cuda.mem_get_info()
    used = {
        "gpu_0_memory_usage_megabytes": round((total - free) / 1e6),
        "gpu_0_memory_usage_percentage": round(100 * (1 - free / total), 1),
    }
    with contextlib.suppress(ModuleNotFoundError, RuntimeError):  # needs a package of the driver's interface
        used["gpu_0_utilization_percentage"] = torch.cuda.utilization()
    return used
