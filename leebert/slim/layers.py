"""Encoders with fewer layers."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import nn

from leebert.backbone import LayerStack, albert_groups
from leebert.errors import ConfigError
from leebert.slim.parts import indices, layer_paths


def layers_only(name: str) -> bool:
    """Whether a parameter name belongs to an encoder's layers, not to embeddings, pooler or exits."""
    return any(part in ("layer", "albert_layer_groups") for part in name.split("."))


def keep_layers(encoder: Any, layers: Iterable[int]) -> None:
    """Keep some layers of an encoder, in place.

    ALBERT applies shared weights, so removing layers removes no weights. With one group of weights, as in the published
    models, only the number of layers matters. With several groups, the kept layers must use the groups in the order of an
    ALBERT of that depth, since its code supports no other order.

    Args:
        encoder: A Hugging Face encoder.
        layers: Layers to keep, from 0, ascending.

    Raises:
        ConfigError: A layer does not exist, or ALBERT's groups would be out of order.
    """
    chosen = check_kept(encoder, layers)
    before = LayerStack(encoder).layers()
    if layer_paths(encoder).layers is None:
        apply_layers(encoder, len(chosen))
    else:
        _replace(encoder, [before[i] for i in chosen])


def check_kept(encoder: Any, layers: Iterable[int]) -> list[int]:
    """Validate the layers for :func:`keep_layers`.

    Args:
        encoder: The encoder.
        layers: The layers to keep, from 0, in rising order.

    Returns:
        The layers.

    Raises:
        ConfigError: A layer does not exist or is listed twice, or an ALBERT would apply its groups in another order.
    """
    shared = layer_paths(encoder).layers is None
    before = LayerStack(encoder).layers()
    chosen = indices(layers, len(before), "layer")
    if shared:
        groups = list(encoder.encoder.albert_layer_groups)
        used, applied = [groups.index(before[i]) for i in chosen], albert_groups(len(chosen), len(groups))
        if used != applied:
            raise ConfigError(
                f"the layers to keep use groups {used}, but an ALBERT of {len(chosen)} layers and {len(groups)} groups uses "
                f"{applied}"
            )
    return chosen


def shorten(encoder: Any, count: int) -> None:
    """Reduce an encoder to its first `count` layers, for weights loaded afterwards. Raises ConfigError."""
    total = len(LayerStack(encoder).layers())
    if not 1 <= count <= total:
        raise ConfigError(f"can't keep {count} of {total} layers")
    if layer_paths(encoder).layers is None:
        apply_layers(encoder, count)
    else:
        _replace(encoder, LayerStack(encoder).layers()[:count])


def apply_layers(albert: Any, count: int) -> None:
    """Let an ALBERT apply `count` layers. Only the configuration of its stack changes, not the model's."""
    albert.encoder.config = copy.deepcopy(albert.encoder.config)
    albert.encoder.config.num_hidden_layers = count


def _replace(encoder: Any, layers: list[nn.Module]) -> None:
    parent, _, name = str(layer_paths(encoder).layers).rpartition(".")
    setattr(encoder.get_submodule(parent), name, nn.ModuleList(layers))
