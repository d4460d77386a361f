"""Equations 1-4: hand-computed values and identities."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leebert.losses import (
    TEACHERS,
    cross_entropy,
    cross_entropy_per_exit,
    distillation,
    distillation_pairs,
    mean_over_teachers,
    tempered,
)
from leebert.weights import Terms


def logits(m=4, b=5, k=3, seed=0):
    return torch.randn(m, b, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_eq1_is_a_sum_over_exits_of_means_over_rows():
    z, y = logits(), torch.tensor([0, 1, 2, 0, 1])
    by_hand = sum(-torch.log_softmax(z[m, b], -1)[y[b]] for m in range(4) for b in range(5)) / 5
    assert cross_entropy(z, y).item() == pytest.approx(by_hand.item())
    assert cross_entropy_per_exit(z, y).shape == (4,)


def test_eq2_and_4_match_a_two_exit_example_worked_by_hand():
    # p_1 = (3/4, 1/4), p_2 = (1/2, 1/2), τ = 1, one row.
    z = torch.log(torch.tensor([[[0.75, 0.25]], [[0.5, 0.5]]], dtype=torch.float64))
    pairs = distillation_pairs(z)
    student_1_teacher_2 = -(0.5 * math.log(0.75) + 0.5 * math.log(0.25))
    student_2_teacher_1 = math.log(2)
    assert pairs[0, 1].item() == pytest.approx(student_1_teacher_2, abs=1e-12)
    assert pairs[1, 0].item() == pytest.approx(student_2_teacher_1, abs=1e-12)
    # Eq. 4 with all exits teaching: M = 2, |T| = 1.
    total = distillation(z, TEACHERS["lae"](2))
    assert total.item() == pytest.approx((student_1_teacher_2 + student_2_teacher_1) / 2, abs=1e-12)


@given(st.floats(0.25, 8.0), st.integers(0, 1000))
def test_eq3_is_the_softmax_of_scaled_logits(temperature, seed):
    z = logits(seed=seed)
    assert torch.allclose(tempered(torch.softmax(z, -1), temperature), torch.softmax(z / temperature, -1))


@given(st.floats(0.5, 4.0), st.integers(0, 1000))
def test_one_einsum_equals_the_double_loop_over_pairs(temperature, seed):
    z = logits(seed=seed)
    pairs = distillation_pairs(z, temperature)
    for m in range(4):
        for t in range(4):
            teacher, student = torch.softmax(z[t] / temperature, -1), torch.log_softmax(z[m] / temperature, -1)
            expected = -(temperature**2) * (teacher * student).sum(-1).mean()
            assert pairs[m, t].item() == pytest.approx(expected.item())


def test_kl_takes_off_the_teachers_entropy_and_leaves_thetas_gradient_alone():
    z = logits().requires_grad_()
    soft, kl = distillation_pairs(z), distillation_pairs(z, kl=True)
    assert torch.allclose(torch.diagonal(kl), torch.zeros(4, dtype=torch.float64), atol=1e-12)
    assert (kl > -1e-12).all()
    g_soft, g_kl = (torch.autograd.grad(p.sum(), z, retain_graph=True)[0] for p in (soft, kl))
    assert torch.allclose(g_soft, g_kl)


def test_a_detached_teacher_gets_no_gradient_and_an_attached_one_does():
    for detach in (True, False):
        z = logits().requires_grad_()
        distillation_pairs(z, detach_teacher=detach)[0, 3].backward()
        assert bool(z.grad[3].abs().sum() > 0) is not detach


@pytest.mark.parametrize(("kind", "count"), [("lae", 144), ("lle", 78), ("last", 23), ("none", 12)])
def test_number_of_weights_at_twelve_exits_is_the_papers(kind, count):
    assert len(Terms.of(TEACHERS[kind](12))) == count


@pytest.mark.parametrize("kind", TEACHERS)
def test_nobody_teaches_itself_and_eq4_is_a_mean_of_means(kind):
    mask = TEACHERS[kind](5)
    assert not mask.diagonal().any()
    share = mean_over_teachers(mask)
    taught = mask.any(dim=1)
    assert torch.allclose(share.sum(dim=1), taught.double() / 5)
    if kind in ("lle", "last"):
        assert not taught[-1]
