"""Device, precision, threads and seeds."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import platform
from collections.abc import Iterator

import numpy as np
import torch

from leebert.config import Precision
from leebert.errors import DeviceError
from leebert.numerics import kernels, processor_flags


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 in hardware (CUDA since Ampere; CPUs with AVX512-BF16 or AMX)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def cpu_flags() -> frozenset[str]:
    """The CPU's feature flags that change floating-point results; empty if the system does not list them."""
    relevant = {"avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "avx512_vnni", "bf16", "asimd"}
    return processor_flags() & relevant


@dataclasses.dataclass(frozen=True)
class Runtime:
    """The device and precision on which a model runs.

    Attributes:
        device: The device.
        dtype: Type of matrix products; θ stays float32.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, precision: Precision = "auto", device: str = "auto") -> Runtime:
        """Select device and precision.

        Args:
            precision: fp32, bf16, or auto: bf16 if the hardware supports it.
            device: cpu, cuda, cuda:N, or auto: CUDA if available.

        Returns:
            Device and type of matrix products.

        Raises:
            DeviceError: The device is unknown, or this machine does not have it.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            chosen = torch.device(device)
        except RuntimeError:
            raise DeviceError(f"--device {device}: unknown; use auto, cpu, cuda or cuda:N") from None
        if chosen.type == "cuda" and (
            not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count()
        ):
            raise DeviceError(
                f"--device {device}: this machine has {torch.cuda.device_count()} CUDA device(s); "
                "use --device cpu, or install a CUDA build of torch"
            )
        bf16 = precision == "bf16" or (precision == "auto" and has_bf16(chosen))
        return cls(chosen, torch.bfloat16 if bf16 else torch.float32)

    @property
    def precision(self) -> str:
        """`bf16` or `fp32`."""
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which matrix products use `dtype`."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def describe(self) -> dict[str, object]:
        """Describe what bit-for-bit reproduction depends on, as JSON-ready values."""
        return {
            "device": str(self.device) if self.device.type == "cpu" else torch.cuda.get_device_name(self.device),
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "cpu_flags": sorted(cpu_flags()),
            "machine": platform.machine(),
            **kernels(),
        }


@dataclasses.dataclass(frozen=True)
class RandomState:
    """The state of torch's generators on the CPU and on one device, which determines dropout masks.

    Attributes:
        device: The device.
        cpu: State of the generator on the CPU.
        on_device: State of the device's generator; None on a CPU.
    """

    device: torch.device
    cpu: torch.Tensor
    on_device: torch.Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> RandomState:
        """Return the present state, to draw the same numbers again later."""
        cuda = device.type == "cuda"
        return cls(device, torch.get_rng_state(), torch.cuda.get_rng_state(device) if cuda else None)

    @classmethod
    def seeded(cls, device: torch.device, *parts: int | str) -> RandomState:
        """Return the state of new generators; torch's global generators do not change.

        Args:
            device: The device of the second generator, beside the CPU.
            *parts: Numbers and names that determine the seed (:func:`derive_seed`).
        """
        seed = derive_seed(*parts)
        on_device = torch.Generator(device).manual_seed(seed).get_state() if device.type == "cuda" else None
        return cls(device, torch.Generator().manual_seed(seed).get_state(), on_device)

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """Context in which torch draws from this state; afterwards its former state is restored."""
        with torch.random.fork_rng([] if self.on_device is None else [self.device]):
            torch.set_rng_state(self.cpu)
            if self.on_device is not None:
                torch.cuda.set_rng_state(self.on_device, self.device)
            yield


@contextlib.contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """Context with at most `count` threads for torch; None: no change."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(max(1, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def derive_seed(*parts: int | str) -> int:
    """Derive a 63-bit seed from numbers and names, equal on every machine and independent for different parts."""
    digest = hashlib.sha256("/".join(str(p) for p in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*parts: int | str) -> np.random.Generator:
    """Make a NumPy generator seeded by :func:`derive_seed`."""
    return np.random.default_rng(derive_seed(*parts))
