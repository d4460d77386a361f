"""The structure of a reduced encoder as a small JSON object, from which its shapes can be rebuilt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leebert.backbone import LayerStack
from leebert.errors import ConfigError
from leebert.slim.embeddings import FactorisedEmbedding, blank_embeddings
from leebert.slim.layers import shorten
from leebert.slim.parts import blocks, layer_paths
from leebert.slim.width import prune_heads, prune_neurons

#: Keys of a structure that concern the encoder, in the order in which they are applied.
KEYS = ("layers", "heads", "intermediate", "embedding_rank")


def structure_of(encoder: Any) -> dict[str, Any]:
    """Describe what was removed from an encoder.

    Args:
        encoder: A Hugging Face encoder.

    Returns:
        Only what differs from the encoder's configuration: `layers`, their number; `heads` and `intermediate`, the
        attention heads and inner neurons of each block (:func:`leebert.slim.parts.blocks`); `embedding_rank`, the rank of
        factorised word embeddings.
    """
    config, paths, all_blocks = encoder.config, layer_paths(encoder), blocks(encoder)
    layers = len(LayerStack(encoder).layers())
    heads = [block.heads for block in all_blocks]
    neurons = [block.neurons for block in all_blocks]
    embeddings = encoder.get_input_embeddings()
    structure: dict[str, Any] = {}
    if layers != config.num_hidden_layers:
        structure["layers"] = layers
    if set(heads) != {config.num_attention_heads}:
        structure["heads"] = heads
    if set(neurons) != {getattr(config, paths.width)}:
        structure["intermediate"] = neurons
    if isinstance(embeddings, FactorisedEmbedding):
        structure["embedding_rank"] = embeddings.rank
    return structure


def restructure(encoder: Any, structure: Mapping[str, Any]) -> None:
    """Give a new encoder the shapes of a reduced one, in place, for weights loaded afterwards.

    Also works on the meta device.

    Args:
        encoder: A new encoder.
        structure: As :func:`structure_of` returns it.

    Raises:
        ConfigError: The structure does not match the encoder.
    """
    if unknown := sorted(set(structure) - set(KEYS)):
        raise ConfigError(f"unknown key {unknown[0]!r} of a structure; use {', '.join(KEYS)}")
    if "layers" in structure:
        shorten(encoder, structure["layers"])
    if "heads" in structure:
        prune_heads(encoder, [range(n) for n in structure["heads"]])
    if "intermediate" in structure:
        prune_neurons(encoder, [range(n) for n in structure["intermediate"]])
    if "embedding_rank" in structure:
        encoder.set_input_embeddings(blank_embeddings(encoder, structure["embedding_rank"]))
