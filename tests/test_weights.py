"""ω: every parametrisation keeps the contract, and its analytic gradient is autograd's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leebert.losses import TEACHERS
from leebert.weights import PARAMETRISATIONS, Terms, random_weights

EVERY = pytest.mark.parametrize("name", PARAMETRISATIONS)


@EVERY
@pytest.mark.parametrize("teachers", TEACHERS)
def test_all_weights_start_at_one(name, teachers):
    terms = Terms.of(TEACHERS[teachers](6))
    p = PARAMETRISATIONS[name]
    assert torch.allclose(p.weights(p.initial(terms), terms), torch.ones(len(terms)), atol=1e-6)


@EVERY
@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), teachers=st.sampled_from(sorted(TEACHERS)), m=st.integers(2, 6))
def test_the_analytic_gradient_equals_autograds(name, seed, teachers, m):
    terms, p = Terms.of(TEACHERS[teachers](m)), PARAMETRISATIONS[name]
    g = torch.Generator().manual_seed(seed)
    start = p.initial(terms).double()
    omega = (start + torch.randn(len(start), generator=g).double()).requires_grad_()
    losses = torch.rand(len(terms), generator=g).double() * 3
    (expected,) = torch.autograd.grad(p.weights(omega, terms) @ losses, omega)
    assert torch.allclose(p.pullback(omega.detach(), losses, terms), expected, atol=1e-10)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 500.0))
def test_softmax_forms_fix_the_scale_however_large_omega_grows(seed, scale):
    terms = Terms.of(TEACHERS["lae"](4))
    omega = torch.randn(len(terms), generator=torch.Generator().manual_seed(seed)) * scale
    for name in ("exit_softmax", "group_softmax"):
        w = PARAMETRISATIONS[name].weights(omega, terms)
        assert torch.isfinite(w).all()
        assert w.sum().item() == pytest.approx(len(terms), rel=1e-4)
    ce, kd = terms.split(PARAMETRISATIONS["exit_softmax"].weights(omega, terms))
    assert torch.allclose(ce + kd.sum(1), torch.full((4,), 4.0), rtol=1e-4)


def test_a_number_per_exit_and_one_per_teacher_weigh_all_their_terms():
    terms, p = Terms.of(TEACHERS["lae"](3)), PARAMETRISATIONS["exit_teacher"]
    omega = p.initial(terms)
    assert len(omega) == 6
    ce, kd = terms.split(p.weights(omega + torch.tensor([0, -20.0, 0, 0, 0, 0]), terms))  # exit 2 off
    assert ce.tolist() == pytest.approx([1.5, 0, 1.5], abs=1e-6)
    assert kd.sum(dim=1).tolist() == pytest.approx([3, 0, 3], abs=1e-6)
    ce, kd = terms.split(p.weights(omega + torch.tensor([0, 0, 0, 0, -20.0, 0]), terms))  # teacher 2 off
    assert kd[:, 1].tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert ce.tolist() == pytest.approx([1.5, 1, 1.5], abs=1e-6)
    assert (ce + kd.sum(dim=1)).tolist() == pytest.approx([3, 3, 3])


def test_a_group_of_one_term_keeps_weight_one_and_gets_no_gradient():
    terms = Terms.of(TEACHERS["lle"](3))  # the last exit has no teacher
    p = PARAMETRISATIONS["exit_softmax"]
    omega = torch.randn(len(terms))
    losses = torch.rand(len(terms))
    assert p.weights(omega, terms)[2] == 1
    assert p.pullback(omega, losses, terms)[2] == 0


def test_first_order_descent_moves_mass_to_the_smallest_term():
    terms, p = Terms.of(TEACHERS["lae"](3)), PARAMETRISATIONS["exit_softmax"]
    omega, losses = p.initial(terms), torch.linspace(0.1, 1, len(terms))
    for _ in range(50):
        omega = omega - 0.5 * p.pullback(omega, losses, terms)
    w = p.weights(omega, terms)
    for exit_ in range(3):
        mine = terms.student == exit_
        assert w[mine].argmax() == losses[mine].argmin()


@given(st.integers(0, 10_000))
def test_rand_sums_to_one_at_each_exit(seed):
    terms = Terms.of(TEACHERS["lae"](5))
    w = random_weights(terms, torch.Generator().manual_seed(seed))
    ce, kd = terms.split(w)
    assert torch.allclose(ce + kd.sum(1), torch.ones(5), atol=1e-6)
    assert (w > 0).all()
    assert torch.equal(w, random_weights(terms, torch.Generator().manual_seed(seed)))


def test_split_puts_each_pair_where_student_and_teacher_meet():
    terms = Terms.of(TEACHERS["last"](4))
    ce, kd = terms.split(torch.arange(len(terms)).float())
    assert ce.tolist() == [0, 1, 2, 3]
    assert kd[:3, 3].tolist() == [4, 5, 6]
    assert kd.sum() == 15
