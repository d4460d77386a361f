"""What an encoder was reduced to, as a small JSON object from which its shapes are made again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leebert.backbone import LayerStack
from leebert.errors import ConfigError
from leebert.slim.embeddings import FactorisedEmbedding, blank_embeddings
from leebert.slim.layers import shorten
from leebert.slim.parts import blocks, places
from leebert.slim.width import prune_heads, prune_neurons

#: The parts of a structure that are an encoder's, in the order in which they are made.
KEYS = ("layers", "heads", "intermediate", "embedding_rank")


def structure_of(encoder: Any) -> dict[str, Any]:
    """What differs from the encoder's own configuration; empty where nothing was removed.

    layers: how many there are. heads, intermediate: how many attention heads and inner neurons each block has
    (:func:`leebert.slim.parts.blocks`). embedding_rank: that of factorised word embeddings.
    """
    config, where, all_blocks = encoder.config, places(encoder), blocks(encoder)
    layers = len(LayerStack(encoder).layers())
    heads = [block.heads for block in all_blocks]
    neurons = [block.neurons for block in all_blocks]
    words = encoder.get_input_embeddings()
    found: dict[str, Any] = {}
    if layers != config.num_hidden_layers:
        found["layers"] = layers
    if set(heads) != {config.num_attention_heads}:
        found["heads"] = heads
    if set(neurons) != {getattr(config, where.width)}:
        found["intermediate"] = neurons
    if isinstance(words, FactorisedEmbedding):
        found["embedding_rank"] = words.rank
    return found


def restructure(encoder: Any, structure: Mapping[str, Any]) -> None:
    """Give a newly made encoder these shapes, in place, for weights that are loaded afterwards.

    Works on the meta device too. Raises ConfigError where the structure doesn't fit the encoder.
    """
    if unknown := sorted(set(structure) - set(KEYS)):
        raise ConfigError(f"a structure's {unknown[0]!r} is not known; known are {', '.join(KEYS)}")
    if "layers" in structure:
        shorten(encoder, structure["layers"])
    if "heads" in structure:
        prune_heads(encoder, [range(n) for n in structure["heads"]])
    if "intermediate" in structure:
        prune_neurons(encoder, [range(n) for n in structure["intermediate"]])
    if "embedding_rank" in structure:
        encoder.set_input_embeddings(blank_embeddings(encoder, structure["embedding_rank"]))
