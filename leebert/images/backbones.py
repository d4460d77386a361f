"""Networks for images by their names, as a configuration has them; torch-free."""

from __future__ import annotations

import re

from leebert.config import ModelConfig
from leebert.errors import ConfigError

_NAME = re.compile(r"resnet(\d{1,4})")


def is_network(backbone: str) -> bool:
    """Whether a backbone is a network of this package for images, and no pretrained encoder."""
    return _NAME.fullmatch(backbone) is not None


def blocks_of(backbone: str) -> int:
    """n, the basic blocks in each of the three groups of `resnet{6n + 2}`. Raises ConfigError for any other name."""
    found = _NAME.fullmatch(backbone)
    if not found:
        raise ConfigError(
            f"backbone {backbone}: an image task takes resnet20, resnet32, resnet44, resnet56 or resnet110"
        )
    n, rest = divmod(int(found[1]) - 2, 6)
    if rest or n < 1:
        near = 6 * max(1, round((int(found[1]) - 2) / 6)) + 2
        raise ConfigError(f"backbone {backbone}: a residual network has 6n + 2 layers; the nearest is resnet{near}")
    return n


def unused_options(model: ModelConfig) -> list[str]:
    """The options of `model` that are for texts alone and were given another value than their default."""
    fields = ModelConfig.model_fields
    return [name for name in ("pooling", "max_length") if getattr(model, name) != fields[name].default]


def check_network(task: str, model: ModelConfig) -> None:
    """Raises ConfigError where a model's section does not describe a network for an image task."""
    blocks_of(model.backbone)
    if wrong := unused_options(model):
        raise ConfigError(f"{wrong[0]} {getattr(model, wrong[0])}: is for texts, and {task} has images; leave it out")
