"""The arrays of exit criteria: torch tensors, NumPy arrays and every other kind that follows the array API standard.

Criteria take the functions of the standard from :func:`namespace`. This module adds the softmax, which the standard lacks.
"""

from __future__ import annotations

import sys
from typing import Any

import array_api_compat

#: A torch tensor, a NumPy array or another array of the standard (https://data-apis.org/array-api).
Array = Any


def namespace(array: Array) -> Any:
    """Return the module whose functions take this kind of array, with names and arguments of the array API standard."""
    if _is_tensor(array):
        import array_api_compat.torch as of_torch

        return of_torch
    return array_api_compat.array_namespace(array)


def _is_tensor(array: Array) -> bool:
    """Whether an array is a torch tensor. `array_api_compat` asks through a cache, about which `torch.compile` warns."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def select(state: Any, remaining: Array) -> Any:
    """Keep some samples of a state, such as a criterion's.

    Args:
        state: An array whose first dimension is the sample, None, or a tuple of these.
        remaining: (B,) booleans.
    """
    if state is None:
        return None
    if isinstance(state, tuple):
        return tuple(select(part, remaining) for part in state)
    return state[remaining]


def float32(array: Array) -> Array:
    """Convert an array to float32; one that is float32 is returned as it is."""
    xp = namespace(array)
    return xp.astype(array, xp.float32, copy=False)


def log_softmax(logits: Array) -> Array:
    """Compute log-probabilities in float32, of the shape of the logits: over the last axis, the classes."""
    values = float32(logits)
    if _is_tensor(values):
        return values.log_softmax(dim=-1)  # its own kernel: results recorded with it stay equal to the last bit
    xp = namespace(values)
    shifted = values - xp.max(values, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


def softmax(logits: Array) -> Array:
    """Compute probabilities in float32, of the shape of the logits: over the last axis, the classes."""
    values = float32(logits)
    if _is_tensor(values):
        return values.softmax(dim=-1)
    xp = namespace(values)
    powers = xp.exp(values - xp.max(values, axis=-1, keepdims=True))
    return powers / xp.sum(powers, axis=-1, keepdims=True)
