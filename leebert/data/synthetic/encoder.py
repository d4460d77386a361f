"""A small encoder for the generated reviews: 6 layers of 64 units, made in a moment, without pretraining or download.

Its weights are random except for two structures, which pretrained encoders have, too, and which few updates can't learn:

* Attention looks at near words. Positions are coded as cosines and sines in the first dimensions, and head k attends to the word
  k places further right. In the first two layers, attention is so sharp that training does not change this, so that the
  first exit, which pools [CLS], sees three words and the second one six.
* Attention copies: values and outputs add other words' meanings to a state.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from leebert.data.synthetic import vocabulary

LAYERS, HIDDEN, HEADS = 6, 64, 4
#: Dimensions of a head; the first ones of a state hold its position.
_WIDTH = HIDDEN // HEADS
#: Sharpness of attention by layer.
_SHARPNESS = (30.0, 80.0, 5.0, 5.0, 5.0, 5.0)
_POSITIONS = 128
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def demo_encoder(words: int, seed: int = 0) -> Any:
    """Make the encoder, a transformers BertModel.

    Args:
        words: Size of the vocabulary.
        seed: Seed of the random weights.
    """
    from transformers import BertConfig, BertModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=words, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            intermediate_size=2 * HIDDEN, initializer_range=0.05, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, max_position_embeddings=_POSITIONS, type_vocab_size=1,
        )  # fmt: skip
        encoder = BertModel(config, add_pooling_layer=False)
        with torch.no_grad():
            frequencies = torch.linspace(0.15, 2.9, _WIDTH // 2)
            _embed(encoder.embeddings, frequencies)
            for layer, sharpness in zip(encoder.encoder.layer, _SHARPNESS, strict=True):
                _attend(layer.attention, frequencies, sharpness)
    return encoder


def _embed(embeddings: Any, frequencies: torch.Tensor) -> None:
    """Code positions in the first dimensions of a state, and words in the others."""
    embeddings.word_embeddings.weight.normal_(0, 1)
    embeddings.word_embeddings.weight[:, :_WIDTH] = 0
    embeddings.token_type_embeddings.weight.zero_()
    angles = torch.arange(_POSITIONS)[:, None] * frequencies
    embeddings.position_embeddings.weight.zero_()
    embeddings.position_embeddings.weight[:, :_WIDTH] = torch.cat([angles.cos(), angles.sin()], dim=1)


def _attend(attention: Any, frequencies: torch.Tensor, sharpness: float) -> None:
    """Let head k attend to the word k places further right, and add that word's meaning to the state."""
    inner, output = attention.self, attention.output.dense
    for linear in (inner.query, inner.key, inner.value, output):
        linear.weight.zero_()
        linear.bias.zero_()
    for head in range(HEADS):
        rows = slice(head * _WIDTH, (head + 1) * _WIDTH)
        cos, sin = (frequencies * head).cos().diag(), (frequencies * head).sin().diag()
        shifted = torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)])
        inner.query.weight[rows, :_WIDTH] = sharpness * shifted
        inner.key.weight[rows, :_WIDTH] = torch.eye(_WIDTH)
    values = torch.randn(HIDDEN, HIDDEN - _WIDTH) / math.sqrt(HIDDEN - _WIDTH)
    inner.value.weight[:, _WIDTH:] = values
    output.weight[_WIDTH:, :] = values.T


def write_encoder(folder: str | Path, seed: int = 0) -> None:
    """Write the encoder and its tokenizer in Hugging Face's layout; equal seeds give equal weights.

    Args:
        folder: Created if missing.
        seed: Seed of the random weights.
    """
    from transformers import BertTokenizerFast

    tokens = [*_SPECIAL, *vocabulary()]
    tokenizer = BertTokenizerFast(vocab={token: i for i, token in enumerate(tokens)}, model_max_length=_POSITIONS)
    tokenizer.save_pretrained(folder)
    demo_encoder(len(tokens), seed).save_pretrained(folder)
