"""Dropout with fast random numbers is dropout: rate, scale, seed, gradient; attention with it is attention."""

import pytest
import torch
from encoders import FAMILIES, batch, encoder
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from leebert.dropout import ATTENTION, FastDropout, attention, dropout, speed_up
from leebert.model import build_model


@given(p=st.floats(0.01, 0.9), seed=st.integers(0, 1000))
def test_elements_are_zero_at_the_rate_and_keep_their_mean(p, seed):
    torch.manual_seed(seed)
    out = dropout(torch.ones(200, 501), p)
    n = out.numel()
    assert abs((out == 0).float().mean().item() - p) < 5 * (p * (1 - p) / n) ** 0.5
    kept = out[out != 0]
    assert torch.allclose(kept, torch.full_like(kept, 1 / (1 - p)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 7, 11), (0, 4)])
def test_any_shape_and_type_and_the_seed_fixes_it(dtype, shape):
    x = torch.randn(shape).to(dtype)
    torch.manual_seed(3)
    a, b = dropout(x, 0.4), dropout(x, 0.4)
    torch.manual_seed(3)
    assert torch.equal(a, dropout(x, 0.4))
    assert a.dtype == dtype
    assert a.shape == x.shape
    if x.numel() > 50:
        assert not torch.equal(a, b)


def test_masks_are_independent_of_each_other():
    torch.manual_seed(0)
    masks = torch.stack([dropout(torch.ones(100_000), 0.3) == 0 for _ in range(2)]).float()
    assert abs(torch.corrcoef(masks)[0, 1].item()) < 0.02
    neighbours = torch.stack([masks[0, :-1], masks[0, 1:]])
    assert abs(torch.corrcoef(neighbours)[0, 1].item()) < 0.02


def test_the_gradient_goes_where_the_values_went():
    x = torch.randn(50, 20, requires_grad=True)
    out = dropout(x, 0.5)
    out.sum().backward()
    assert torch.equal(x.grad != 0, out != 0)
    assert torch.equal(x.grad[x.grad != 0], torch.full_like(x.grad[x.grad != 0], 2.0))


def test_outside_training_nothing_is_dropped():
    module = FastDropout(0.5)
    x = torch.randn(4, 4)
    assert module.eval()(x) is x
    assert (module.train()(torch.ones(1000)) == 0).any()


@pytest.mark.slow
def test_attention_equals_torchs_where_nothing_is_dropped_and_in_the_mean_where_something_is():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 6, 8) for _ in range(3))
    mask = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    mask[1, :, :, 4:] = False
    module = nn.Module()
    module.is_causal = False
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    assert torch.allclose(attention(module, q, k, v, mask)[0], expected, atol=1e-5)
    mean = torch.stack([attention(module, q, k, v, mask, dropout=0.2)[0] for _ in range(4000)]).mean(0)
    assert torch.allclose(mean, expected, atol=0.06)
    additive = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    torch.manual_seed(1)
    a = attention(module, q, k, v, mask, dropout=0.2)[0]
    torch.manual_seed(1)
    assert torch.allclose(a, attention(module, q, k, v, additive, dropout=0.2)[0], atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_drops_by_it_and_its_parameters_stay(family):
    plain = encoder(family)
    names = [name for name, _ in plain.named_parameters()]
    model = build_model(plain, ("no", "yes"), pooling="cls")
    assert not any(type(m) is nn.Dropout for m in model.backbone.modules())
    assert model.backbone.config._attn_implementation == ATTENTION
    assert [n for n, _ in model.backbone.named_parameters()] == [n for n in names if "pooler" not in n]
    torch.manual_seed(0)
    a = model.train().record(batch()).logits
    torch.manual_seed(0)
    b = model.record(batch()).logits
    assert torch.equal(a, b)
    assert not torch.equal(a, model.record(batch()).logits)
    assert "leebert" not in str(model.config.to_dict()["backbone_config"])


def test_eager_attention_is_left_alone():
    plain = encoder("bert", attn_implementation="eager")
    speed_up(plain)
    assert plain.config._attn_implementation == "eager"
