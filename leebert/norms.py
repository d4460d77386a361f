"""BatchNorm's running statistics move with steps of θ, of the parts that a stage trains, and with nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def training_mode(model: nn.Module, trains: Callable[[str], bool]) -> None:
    """Training mode, but for each BatchNorm of a frozen part: those whose `running_mean` has a name that `trains` excludes.

    These normalise by what they have learned, as at inference, and keep it.
    """
    model.train()
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and not trains(f"{name}.running_mean"):
            module.eval()


@contextlib.contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Within this context BatchNorm in training mode normalises by the batch and leaves its running statistics alone."""
    tracking = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True
