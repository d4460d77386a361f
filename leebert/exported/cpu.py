"""The instructions of this machine's CPU that determine ONNX Runtime's kernels."""

from __future__ import annotations

import functools

from leebert.numerics import processor_flags

#: Flags of /proc/cpuinfo that select kernels for matrices, of x86 and Arm.
FLAGS = ("avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "sve")

#: Flags of CPUs that multiply 8-bit integers into 32-bit sums in one instruction.
EIGHT_BIT = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})


@functools.cache
def kernel_flags() -> tuple[str, ...]:
    """Return those of :data:`FLAGS` that this CPU has; empty where the system does not tell."""
    flags = processor_flags()
    return tuple(flag for flag in FLAGS if flag in flags)


def lacks_eight_bit() -> bool:
    """Whether this CPU is known to have no instruction of :data:`EIGHT_BIT`."""
    flags = kernel_flags()
    return bool(flags) and not EIGHT_BIT & set(flags)
