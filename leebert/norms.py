"""Update BatchNorm's running statistics only in steps of θ, and only in the parts that a stage trains."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def training_mode(model: nn.Module, trains: Callable[[str], bool]) -> None:
    """Set training mode, except in BatchNorm layers of frozen parts, which use and keep their running statistics.

    Args:
        model: The model.
        trains: Whether a parameter or buffer trains, by its name.
    """
    model.train()
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and not trains(f"{name}.running_mean"):
            module.eval()


@contextlib.contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Context in which BatchNorm in training mode normalises by the batch without updating its running statistics."""
    tracking = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True
