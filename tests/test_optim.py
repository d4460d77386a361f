"""The algorithms against the paper: identities between them, and an example written out by hand."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import ALGORITHMS, toy_mlp, toy_rows

from leebert.config import TrainConfig
from leebert.errors import ConfigError
from leebert.level import StageLevel
from leebert.methods.blo import BLO
from leebert.methods.clo_v1 import ReusingCLO
from leebert.methods.clo_v2 import CLO
from leebert.methods.uncertainty import Uncertainty
from leebert.objective import ExitObjective
from leebert.record import Record
from leebert.runtime import Runtime
from leebert.stages import Stage
from leebert.train import fit

CPU = Runtime(torch.device("cpu"))


def run(algorithm, *, epochs=3, **options):
    config = TrainConfig(
        algorithm=options.pop("name", "clo-v2"), lr_theta=1e-2, lr_omega=3e-2, batch_size=8, max_epochs=epochs,
        precision="fp32", **options,
    )  # fmt: skip
    model = toy_mlp()
    stage = Stage("joint", ExitObjective.of(config, 3), algorithm or ALGORITHMS[config.algorithm](config))
    result = fit(model, toy_rows(), config, stages=(stage,), validation=toy_rows(seed=1))
    return [p.detach().clone() for p in model.parameters()], result.reports[-1].weights


def assert_same(a, b):
    assert all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True))
    assert a[1] == b[1]


def test_clo_v2_at_cycle_one_is_clo_v1():
    assert_same(run(None, name="clo-v2", cycle_length=1), run(None, name="clo-v1"))
    assert CLO() == CLO(cycle_length=1, omega_in_cycle=True, splits_data=True)


@dataclasses.dataclass(frozen=True)
class CLOWithoutD1(CLO):
    """Eq. 9 with its first term dropped."""

    def step(self, level, b1, position):
        level.theta_step(b1)
        level.omega_step(at_lr_omega=level.losses(level.next_d2(), b1)[0])
        return 0


@pytest.mark.parametrize("omega_forward", ["train", "eval"])
def test_clo_without_its_d1_term_is_blo(omega_forward):
    assert_same(run(CLOWithoutD1(), omega_forward=omega_forward), run(BLO(), omega_forward=omega_forward))


def test_clo_differs_from_blo_and_both_from_uniform():
    outcomes = {name: run(None, name=name)[1] for name in ("uniform", "blo", "clo-v1", "clo-v2", "slo", "rand")}
    assert outcomes["uniform"] == {"ce": [1.0] * 3, "kd": [2.0] * 3}
    assert len({str(w) for w in outcomes.values()}) == len(outcomes)


class TwoLogits(nn.Module):
    """Two exits on one number: z_m(x) = (a_m·x, 0). Small enough to differentiate by hand."""

    num_exits = 2

    def __init__(self, a1, a2):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([a1, a2], dtype=torch.float64))

    def record(self, batch):
        z = self.a[:, None] * batch["x"][None, :]
        return Record(torch.stack([z, torch.zeros_like(z)], -1), batch["labels"])


def by_hand(a, w, batch):
    """Eq. 5 for TwoLogits at τ = 1 with detached teachers: terms l = (CE_1, CE_2, KD_12, KD_21) and dL/da."""
    sig = lambda v: 1 / (1 + math.exp(-v))  # noqa: E731
    n = len(batch)
    l, grad = [0.0] * 4, [0.0, 0.0]
    for x, y in batch:
        p = [sig(a[0] * x), sig(a[1] * x)]  # probability of class 0
        target = 1.0 if y == 0 else 0.0
        for m in range(2):
            t = p[1 - m]
            l[m] -= math.log(p[m] if y == 0 else 1 - p[m]) / n
            l[2 + m] -= (t * math.log(p[m]) + (1 - t) * math.log(1 - p[m])) / (2 * 1) / n
            grad[m] += (w[m] * (p[m] - target) + w[2 + m] * (p[m] - t) / 2) * x / n
    return l, grad


def test_a_hand_written_two_exit_example_of_algorithm_2():
    """Two steps of CLO-v2 at C = 2 with raw weights, SGD for ω, and a plain θ step, in pencil-and-paper arithmetic."""
    lr_theta, lr_omega = 0.1, 0.02
    b1s = [[(1.0, 0), (-0.5, 1)], [(0.3, 1), (2.0, 0)]]
    b2 = [(0.7, 0), (-1.2, 0)]

    a, w = [0.4, -0.2], [1.0] * 4
    _, grad = by_hand(a, w, b1s[0])
    l1, _ = by_hand(a, w, b1s[0])
    a = [v - lr_theta * g for v, g in zip(a, grad, strict=True)]
    w = [v - lr_theta * l for v, l in zip(w, l1, strict=True)]  # step 1 < C: from the θ step's own forward
    _, grad = by_hand(a, w, b1s[1])
    a = [v - lr_theta * g for v, g in zip(a, grad, strict=True)]
    l1, _ = by_hand(a, w, b1s[1])  # step C: both with the updated θ
    l2, _ = by_hand(a, w, b2)
    w = [v - lr_theta * x - lr_omega * y for v, x, y in zip(w, l1, l2, strict=True)]

    def batch(pairs):
        return {"x": torch.tensor([x for x, _ in pairs]).double(), "labels": torch.tensor([y for _, y in pairs])}

    config = TrainConfig(
        lr_theta=lr_theta,
        lr_omega=lr_omega,
        parametrisation="raw",
        omega_optimizer="sgd",
        clip_norm=1e9,
        precision="fp32",
    )
    model = TwoLogits(0.4, -0.2)
    level = StageLevel(model, Stage("s", ExitObjective.of(config, 2), CLO(2)), config, CPU, (0,))
    level.state = {"omega": torch.ones(4, dtype=torch.float64)}
    level.omega_optimizer = torch.optim.SGD([level.state["omega"]], lr=lr_omega)
    level.theta_optimizer = torch.optim.SGD(model.parameters(), lr=lr_theta)
    level.start_epoch(iter([batch(b2)]))
    position = 0
    for pairs in b1s:
        position = level.stage.algorithm.step(level, batch(pairs), position)
    assert position == 0
    assert model.a.tolist() == pytest.approx(a, abs=1e-6)
    # The layout's order is CE_1, CE_2, then students row by row: KD of exit 1 from 2, of exit 2 from 1.
    assert level.state["omega"].tolist() == pytest.approx(w, abs=1e-6)


def momentum(omega, gradient, rate, memory):
    memory["mean"] = (memory.get("mean", gradient) + gradient) / 2
    return omega - rate * memory["mean"]


def level_of(lr_omega=0.1):
    config = TrainConfig(batch_size=8, precision="fp32", parametrisation="raw", lr_omega=lr_omega)
    return StageLevel(toy_mlp(), Stage("s", ExitObjective.of(config, 3), CLO()), config, CPU, (0,))


def test_a_rule_of_its_own_steps_omega_and_its_memory_is_in_checkpoints():
    level, resumed = level_of(), level_of()
    start = level.state["omega"].clone()
    first, second = torch.rand(2, len(start))
    level.omega_step(at_lr_omega=first, rule=momentum)
    torch.testing.assert_close(level.state["omega"], start - 0.1 * first)
    resumed.load_optimizer_tensors(level.optimizer_tensors())
    for one in (level, resumed):
        one.omega_step(at_lr_omega=second, rule=momentum)
    torch.testing.assert_close(level.state["omega"], start - 0.1 * (first + (first + second) / 2))
    assert torch.equal(level.state["omega"], resumed.state["omega"])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda omega, gradient, rate, memory: gradient[:2], r"its rule returns ω in shape \(2,\); return \(\d+,\)"),
        (
            lambda omega, gradient, rate, memory: memory.update(t=1) or omega,
            "stores 't' as int in its memory",
        ),
    ],
)
def test_a_rule_that_does_not_fit_is_named(rule, message):
    level = level_of()
    with pytest.raises(ConfigError, match=f"method clo-v2: .*{message}"):
        level.omega_step(at_lr_omega=torch.rand(len(level.state["omega"])), rule=rule)


class CountingLevel:
    """Counts what an algorithm does in a step."""

    def __init__(self):
        self.calls = []

    def theta_step(self, batch):
        self.calls.append("theta")
        return torch.ones(1)

    def losses(self, *batches):
        self.calls += ["forward"] * len(batches)
        return (torch.ones(1),) * len(batches)

    def omega_step(self, **terms):
        self.calls.append("omega:" + "+".join(sorted(terms)))

    def weights(self):
        return torch.ones(1)

    def next_d2(self):
        self.calls.append("d2")
        return {}


@settings(max_examples=30)
@given(cycle=st.integers(1, 9), steps=st.integers(1, 40))
def test_clo_v2_costs_two_forwards_and_one_batch_of_d2_per_cycle(cycle, steps):
    level, position = CountingLevel(), 0
    for _ in range(steps):
        position = CLO(cycle).step(level, {}, position)
    assert level.calls.count("theta") == steps
    assert level.calls.count("d2") == steps // cycle
    assert level.calls.count("forward") == 2 * (steps // cycle)
    assert level.calls.count("omega:at_lr_omega+at_lr_theta") == steps // cycle
    assert level.calls.count("omega:at_lr_theta") == steps - steps // cycle
    assert position == steps % cycle


def test_section_3_4s_reading_leaves_omega_alone_within_a_cycle():
    level = CountingLevel()
    CLO(4, omega_in_cycle=False).step(level, {}, 0)
    assert level.calls == ["theta"]


@pytest.mark.parametrize(
    "name", sorted(ALGORITHMS.keys() - {"hyper", "hyper-v2"})
)  # what that costs: tests/test_hypergradient.py
def test_every_algorithm_makes_one_theta_step_and_no_other_backward(name):
    level = CountingLevel()
    position = ALGORITHMS[name](TrainConfig(algorithm=name, cycle_length=1)).step(level, {}, 0)
    assert position == 0, "a cycle of one step begins anew"
    assert level.calls.count("theta") == 1
    assert level.calls[0] == "theta"


class ReuseLevel(CountingLevel):
    """Also records at which θ losses are taken: the number of θ steps before them."""

    def __init__(self):
        super().__init__()
        self.theta, self.pairs = 0, []

    def losses(self, *batches):
        return (torch.full((1,), float(self.theta)),) * len(batches)

    def theta_step(self, batch, before=None):
        if before:
            before(torch.full((1,), float(self.theta)))
        self.theta += 1

    def omega_step(self, *, at_lr_theta, at_lr_omega):
        self.pairs.append((int(at_lr_theta), int(at_lr_omega), self.theta))


def test_clo_v1_that_reuses_a_forward_takes_both_losses_at_the_theta_of_algorithm_1():
    level, position, step = ReuseLevel(), 0, ReusingCLO()
    for _ in range(4):
        position = step.step(level, {}, position)
    # After each of the first three steps of θ, and before the next one.
    assert level.pairs == [(1, 1, 1), (2, 2, 2), (3, 3, 3)]


@pytest.mark.parametrize("accumulate", [1, 4])
def test_weights_updated_before_the_backward_pass_weigh_it(accumulate):
    config = TrainConfig(batch_size=8, precision="fp32", parametrisation="raw", accumulate=accumulate, exit_dropout=0.0)
    stage = Stage("s", ExitObjective.of(config, 3), CLO(), optimizer=lambda p, lr, _: torch.optim.SGD(p, lr=1.0))
    batch, seen = toy_rows().collate(range(8)), []
    given, changed = (StageLevel(toy_mlp(dropout=0.0), stage, config, CPU, (0,)) for _ in range(2))
    other = torch.linspace(0.1, 1, len(given.state["omega"]))
    given.state["omega"].copy_(other)
    losses = given.theta_step(batch)
    changed.theta_step(batch, before=lambda terms: (seen.append(terms), changed.state["omega"].copy_(other)))
    torch.testing.assert_close(seen, [losses])
    for a, b in zip(given.theta.values(), changed.theta.values(), strict=True):
        torch.testing.assert_close(a, b)


def test_reusing_a_forward_agrees_with_algorithm_1_on_where_omega_goes():
    kept, reused = (run(None, name="clo-v1", epochs=6, reuse_forward=reuse)[1] for reuse in (False, True))
    ce = torch.tensor([kept["ce"], reused["ce"]])
    assert kept != reused
    assert (ce[0] - ce[1]).abs().max() < 0.15 * (1 - ce[0]).abs().max()


def test_uncertainty_weighting_ends_at_half_the_inverse_of_each_loss():
    config = TrainConfig(
        algorithm="uncertainty",
        batch_size=8,
        precision="fp32",
        parametrisation="softplus",
        omega_optimizer="sgd",
        lr_omega=0.1,
    )
    stage = Stage("s", ExitObjective.of(config, 3), CLO())
    level = StageLevel(toy_mlp(), stage, config, CPU, (0,))
    losses = torch.linspace(0.2, 2, len(level.state["omega"]))
    level.theta_step = lambda batch: losses
    for _ in range(2000):
        Uncertainty().step(level, {}, 0)
    torch.testing.assert_close(level.weights(), 0.5 / losses, rtol=1e-3, atol=0)


def adam_by_hand(gradients, rates):
    """Adam's steps from 0 for one gradient per step."""
    omega, m, s = 0.0, 0.0, 0.0
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g * g
        omega -= rate * (m / (1 - 0.9**t)) / (math.sqrt(s / (1 - 0.999**t)) + 1e-8)
    return omega


def test_an_adam_for_each_gradient_steps_at_both_rates():
    """One Adam on the sum moves ω by λ2 however small λ1 is; with one for each, θ's rate decides the part of L_B1."""
    config = TrainConfig(
        batch_size=8, precision="fp32", parametrisation="raw", lr_theta=0.02, lr_omega=0.1, omega_optimizer="adam_each"
    )
    stage = Stage("s", ExitObjective.of(config, 3), CLO())
    level, resumed = (StageLevel(toy_mlp(), stage, config, CPU, (0,)) for _ in range(2))
    n = len(level.state["omega"])
    d1, d2, rates = [0.5, 2.0, 0.1], [-1.0, 0.3], [0.02, 0.01, 0.005]
    for step, (l1, rate) in enumerate(zip(d1, rates, strict=True)):
        if step == 2:  # a checkpoint between two steps
            resumed.load_optimizer_tensors(level.optimizer_tensors())
            level = resumed
        level.rate = rate
        at_lr_omega = torch.full((n,), d2[step]) if step < len(d2) else None
        level.omega_step(at_lr_theta=torch.full((n,), l1), at_lr_omega=at_lr_omega)
    expected = 1 + adam_by_hand(d1, rates) + adam_by_hand(d2, [0.1] * 2)
    torch.testing.assert_close(level.state["omega"], torch.full((n,), expected), rtol=0, atol=1e-5)


def test_the_omega_step_makes_no_backward_pass(monkeypatch):
    config = TrainConfig(batch_size=8, precision="fp32")
    level = StageLevel(toy_mlp(), Stage("s", ExitObjective.of(config, 3), CLO()), config, CPU, (0,))
    batch = toy_rows().collate(range(8))

    def forbidden(*args, **kwargs):
        raise AssertionError("a backward pass")

    monkeypatch.setattr(torch.autograd, "backward", forbidden)
    monkeypatch.setattr(torch.Tensor, "backward", forbidden)
    before = level.state["omega"].clone()
    l1, l2 = level.losses(batch, batch)
    level.omega_step(at_lr_theta=l1, at_lr_omega=l2)
    assert not torch.equal(before, level.state["omega"])
