"""Names of image networks in configurations; torch-free."""

from __future__ import annotations

import re

from leebert.config import ModelConfig
from leebert.errors import ConfigError

_NAME = re.compile(r"resnet(\d{1,4})")


def is_network(backbone: str) -> bool:
    """Whether a backbone is an image network of this package rather than a pretrained encoder."""
    return _NAME.fullmatch(backbone) is not None


def blocks_of(backbone: str) -> int:
    """Return n, the basic blocks in each of the three groups of `resnet{6n + 2}`. Raises ConfigError for other names."""
    match = _NAME.fullmatch(backbone)
    if not match:
        raise ConfigError(
            f"backbone {backbone}: an image task takes resnet20, resnet32, resnet44, resnet56 or resnet110"
        )
    n, remainder = divmod(int(match[1]) - 2, 6)
    if remainder or n < 1:
        closest = 6 * max(1, round((int(match[1]) - 2) / 6)) + 2
        raise ConfigError(f"backbone {backbone}: a residual network has 6n + 2 layers; the nearest is resnet{closest}")
    return n


def unused_options(model: ModelConfig) -> list[str]:
    """Return the options of `model` that apply to texts only and differ from their defaults."""
    fields = ModelConfig.model_fields
    return [name for name in ("pooling", "max_length") if getattr(model, name) != fields[name].default]


def check_network(task: str, model: ModelConfig) -> None:
    """Check that a model section describes an image network.

    Args:
        task: Name of the image task.
        model: The section.

    Raises:
        ConfigError: The backbone is not an image network, or an option applies to texts only.
    """
    blocks_of(model.backbone)
    if unused := unused_options(model):
        raise ConfigError(
            f"{unused[0]} {getattr(model, unused[0])}: applies to texts only, and {task} has images; omit it"
        )
