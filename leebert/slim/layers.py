"""Encoders with fewer layers."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import nn

from leebert.backbone import LayerStack, albert_groups
from leebert.errors import ConfigError
from leebert.slim.parts import indices, places


def layers_only(name: str) -> bool:
    """Whether a parameter, by its name in a model, is of an encoder's layers: not of embeddings, pooler or exits."""
    return any(part in ("layer", "albert_layer_groups") for part in name.split("."))


def keep_layers(encoder: Any, layers: Iterable[int]) -> None:
    """Keep the given layers (from 0, ascending) in place. Raises ConfigError for layers that there are not.

    ALBERT's layers are applications of shared weights: fewer of them remain and no weight goes, so with the published
    models' one group only the number of `layers` counts. With several groups, those that are kept must use the groups
    as an ALBERT of that depth does (each equally often, one after the other), which is all that its code can run.
    """
    chosen = check_kept(encoder, layers)
    before = LayerStack(encoder).layers()
    if places(encoder).layers is None:
        apply_layers(encoder, len(chosen))
    else:
        _replace(encoder, [before[i] for i in chosen])


def check_kept(encoder: Any, layers: Iterable[int]) -> list[int]:
    """The layers as :func:`keep_layers` takes them. Raises ConfigError where it can't."""
    shared = places(encoder).layers is None
    before = LayerStack(encoder).layers()
    chosen = indices(layers, len(before), "layer")
    if shared:
        groups = list(encoder.encoder.albert_layer_groups)
        used, applied = [groups.index(before[i]) for i in chosen], albert_groups(len(chosen), len(groups))
        if used != applied:
            raise ConfigError(
                f"the layers to keep use groups {used}, but an ALBERT of {len(chosen)} layers and {len(groups)} groups applies "
                f"{applied}"
            )
    return chosen


def shorten(encoder: Any, count: int) -> None:
    """Give an encoder `count` layers, whichever these are: its first, or of ALBERT's any. Raises ConfigError."""
    total = len(LayerStack(encoder).layers())
    if not 1 <= count <= total:
        raise ConfigError(f"{count} layers can't be kept of {total}")
    if places(encoder).layers is None:
        apply_layers(encoder, count)
    else:
        _replace(encoder, LayerStack(encoder).layers()[:count])


def apply_layers(albert: Any, count: int) -> None:
    """Let an ALBERT apply its layers `count` times. Its own configuration stays: the stack of layers gets another."""
    albert.encoder.config = copy.deepcopy(albert.encoder.config)
    albert.encoder.config.num_hidden_layers = count


def _replace(encoder: Any, layers: list[nn.Module]) -> None:
    parent, _, name = str(places(encoder).layers).rpartition(".")
    setattr(encoder.get_submodule(parent), name, nn.ModuleList(layers))
