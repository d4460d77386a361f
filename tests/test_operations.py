"""Multiply-adds and parameters: against closed formulas, and of reduced models."""

import pytest
import torch
from encoders import EVERY_FAMILY, encoder, text
from transformers import AutoModel, BertConfig

from leebert.model import build_model
from leebert.operations import multiply_adds, parameters
from leebert.slim.parts import blocks

LENGTH = 11


def model_of(family, **options):
    return build_model(encoder(family, **options), ("no", "yes"))


def of_a_block(hidden, attention, inner, length):
    """Query, key, value and output; scores and their weighted sum; the feed-forward part."""
    return length * (4 * hidden * attention + 2 * hidden * inner) + 2 * length * length * attention


@pytest.mark.parametrize("length", [5, 11])
def test_bert_costs_what_the_closed_formula_gives(length):
    model = model_of("bert")
    exit_ = 32 * 32 + 32 * 2  # the pooler and a linear layer on one token
    layer = of_a_block(32, 32, 48, length)
    assert multiply_adds(model, text(length)) == tuple((i + 1) * (layer + exit_) for i in range(4))


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_every_family_costs_the_same_for_each_layer(family):
    counts = multiply_adds(model_of(family), text(LENGTH))
    steps = {b - a for a, b in zip(counts, counts[1:], strict=False)}
    pooler = 0 if family in ("electra", "distilbert") else 32 * 32
    assert steps == {of_a_block(32, 32, 48, LENGTH) + pooler + 64}
    before = 16 * 32 * LENGTH if family in ("albert", "electra") else 0  # from the narrower embeddings
    assert counts[0] == before + steps.pop()


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_a_reduced_model_costs_what_it_keeps(family):
    model = model_of(family)
    model.reduce(
        layers=[0, 1, 2],
        heads=[[0]] * min(3, len(blocks(model.backbone))),
        neurons=[range(12)] * min(3, len(blocks(model.backbone))),
        embedding_rank=4,
    )
    model.keep_exits([3])
    width = 16 if family in ("albert", "electra") else 32
    before = LENGTH * (4 * width + (16 * 32 if width == 16 else 0))
    pooler = 0 if family in ("electra", "distilbert") else 32 * 32
    assert multiply_adds(model, text(LENGTH)) == (before + 3 * of_a_block(32, 16, 12, LENGTH) + pooler + 64,)


def test_counting_leaves_the_mode_and_no_gradients():
    model = model_of("bert").train()
    multiply_adds(model, text(LENGTH))
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_parameters_with_and_without_tables():
    model = model_of("bert")
    layer = 4 * (32 * 32 + 32) + 2 * 32 * 48 + 48 + 32 + 4 * 32
    rest = 4 * layer + 2 * 32 + (32 * 32 + 32) + 4 * (64 + 2)  # the embeddings' normalisation, pooler, exits
    assert parameters(model).computing == rest
    assert parameters(model).total == rest + (64 + 64 + 2) * 32
    model.reduce(embedding_rank=4)
    assert parameters(model).computing == rest + 4 * 32
    assert parameters(model).total == rest + 4 * 32 + 64 * 4 + (64 + 2) * 32
    shared = model_of("albert")
    assert parameters(shared).total == sum(p.numel() for p in shared.parameters())


@pytest.mark.slow
def test_bert_base_has_the_operations_and_parameters_that_are_known_of_it():
    with torch.device("meta"):
        backbone = AutoModel.from_config(BertConfig())
    assert sum(p.numel() for p in backbone.parameters()) == 109_482_240
    model = build_model(backbone.to_empty(device="cpu"), ("no", "yes"))
    counts = multiply_adds(model, text(128))
    # 12 layers of 128 tokens: the 11.2 G multiply-adds (22.4 GFLOPs) of the literature.
    assert counts[-1] == 12 * (of_a_block(768, 768, 3072, 128) + 768 * 768 + 2 * 768)
    assert counts[-1] == pytest.approx(11.2e9, rel=0.01)
