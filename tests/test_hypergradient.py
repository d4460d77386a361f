"""The true hypergradient against double backward: every parametrisation and optimiser, in parts, clipped, with dropout."""

import copy
import itertools

import numpy as np
import pytest
import quick
import torch
from encoders import batch as text_batch
from encoders import encoder
from test_optim import CPU
from torch import nn
from toys import toy_mlp, toy_rows

from leebert.config import TrainConfig
from leebert.errors import ConfigError
from leebert.level import StageLevel
from leebert.look_ahead import _Recorder
from leebert.methods import METHODS
from leebert.methods.blo import BLO
from leebert.methods.hyper import Hyper
from leebert.model import build_model
from leebert.objective import ExitObjective
from leebert.optim.outer import OBJECTIVES
from leebert.record import Record
from leebert.runtime import RandomState, Runtime
from leebert.stages import Stage
from leebert.train import fit
from leebert.weights import PARAMETRISATIONS

#: λ1 at the step, as from a schedule (it is not lr_theta): AdamW's steps are larger at the same rate.
RATES = {torch.optim.SGD: 1e-3, torch.optim.AdamW: 1e-4}


class Net(nn.Module):
    """Three exits on a chain of tanh layers, in float64."""

    num_exits = 3

    def __init__(self, dropout=0.0, normalised=False):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(a, 8) for a in (6, 8, 8))
        self.norms = nn.ModuleList(nn.BatchNorm1d(8) if normalised else nn.Identity() for _ in range(3))
        self.exits = nn.ModuleList(nn.Linear(8, 3) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        self.double()

    def record(self, batch):
        x, logits = batch["features"], []
        for layer, norm, exit_ in zip(self.layers, self.norms, self.exits, strict=True):
            x = torch.tanh(norm(layer(self.dropout(x))))
            logits.append(2 * exit_(x))
        return Record(torch.stack(logits), batch["labels"])


def batches(count, rows=10):
    g = torch.Generator().manual_seed(1)
    return [
        {
            "features": torch.randn(rows, 6, generator=g).double(),
            "labels": torch.randint(0, 3, (rows,), generator=g),
        }
        for _ in range(count)
    ]


def level_of(model, optimizer, runtime=CPU, objective=None, **options):
    """A level at ω near, not at, its start, whose ω takes plain steps at rate 1: a step is minus the hypergradient."""
    config = TrainConfig(
        **{"algorithm": "hyper", "omega_optimizer": "sgd", "lr_omega": 1.0, "clip_norm": 1e9, **options}
    )
    stage = Stage(
        "s", objective or ExitObjective.of(config, model.num_exits), Hyper(), optimizer=lambda p, lr, _: optimizer(p)
    )
    level = StageLevel(model.train(), stage, config, runtime, (0,))
    omega = level.state["omega"].to(next(model.parameters()).dtype)
    level.state["omega"] = omega + 0.5 * torch.rand(omega.shape, generator=torch.Generator().manual_seed(2))
    level.omega_optimizer = torch.optim.SGD([level.state["omega"]], lr=1.0)
    level.rate = RATES.get(type(level.theta_optimizer), 1e-3)
    return level


def hypergradient(level, b1, b2, algorithm=None):
    """What a step of the algorithm descends on."""
    level.start_epoch(iter([b2]))
    before = level.state["omega"].clone()
    torch.manual_seed(7)
    assert (algorithm or Hyper()).step(level, b1, 0) == 0
    return before - level.state["omega"]


def by_double_backward(level, b1, b2, outer=None):
    """∇ω O(θ'(ω), ω) by autograd through the step, and its part b that BLO takes; nothing of the level moves.

    O is L_B2, or an outer objective without ω, for which b is 0.
    """
    objective, model = level.stage.objective, level.model
    omega = level.state["omega"].clone().requires_grad_()
    weights = objective.parametrisation.weights(omega, objective.layout)
    theta = {name: p.detach().clone().requires_grad_() for name, p in level.theta.items()}
    record = lambda at, batch: torch.func.functional_call(  # noqa: E731
        _Recorder(model), {f"model.{n}": p for n, p in at.items()}, (batch,)
    )
    terms = lambda at, batch: objective.terms(record(at, batch), level.state)  # noqa: E731
    torch.manual_seed(7)
    g = torch.autograd.grad(weights @ terms(theta, b1), theta.values(), create_graph=True)
    norm = torch.stack([x.square().sum() for x in g]).sum().sqrt()
    clipped = [x * (level.config.clip_norm / (norm + 1e-6)).clamp(max=1) for x in g]
    after = dict(zip(theta, stepped(level, list(theta.values()), clipped), strict=True))
    # ω's masks: of epoch 0, after its first update, the second context (the first draws B2 itself).
    with RandomState.seeded(level.runtime.device, *level.seed, 0, 1, 2).replayed():
        if outer:
            (whole,) = torch.autograd.grad(outer(record(after, b2)), omega)
            return whole, torch.zeros_like(whole)
        l2 = terms(after, b2)
    (whole,) = torch.autograd.grad(weights @ l2, omega, retain_graph=True)
    (direct,) = torch.autograd.grad(weights @ l2.detach(), omega)
    return whole, direct


def stepped(level, theta, gradients):
    """θ' with a graph: the same class of optimiser, by torch's own differentiable form."""
    (group,) = level.theta_optimizer.param_groups
    kind = type(level.theta_optimizer)
    options = {"lr": level.rate, "weight_decay": group["weight_decay"], "differentiable": True}
    options |= {"momentum": group["momentum"], "nesterov": group["nesterov"]} if kind is torch.optim.SGD else {}
    moved = [p.detach().clone() for p in theta]
    optimizer = kind(moved, **options)
    for new, old, g in zip(moved, level.theta.values(), gradients, strict=True):
        state = level.theta_optimizer.state[old]
        optimizer.state[new] = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()}
        new.grad = g
    optimizer.step()
    return moved


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1.0),
    "nesterov": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1.0, weight_decay=0.1),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1.0, fused=True),
}


#: Each value beside one of the others: `make test` runs the product.
PAIRED = [*((o, "softplus", "lae") for o in OPTIMIZERS), *(("adamw", p, "last") for p in PARAMETRISATIONS)]


@pytest.mark.parametrize(
    ("optimizer", "parametrisation", "teachers"),
    quick.only(PAIRED, itertools.product(OPTIMIZERS, PARAMETRISATIONS, ["lae", "last"])),
)
def test_it_equals_double_backward(optimizer, parametrisation, teachers):
    *earlier, b1, b2 = batches(8)
    level = level_of(Net(), OPTIMIZERS[optimizer], parametrisation=parametrisation, teachers=teachers)
    for batch in earlier:  # moments and step counts of a run that is under way
        level.theta_step(batch)
    expected, direct = by_double_backward(level, b1, b2)
    found = hypergradient(level, b1, b2)
    assert (found - expected).abs().max() < 1e-8
    # The part through θ' is there, and itself precise.
    through = expected - direct
    assert through.abs().max() > 1e-5
    torch.testing.assert_close(found - direct, through, rtol=1e-3, atol=1e-4 * through.abs().max().item())


@pytest.mark.parametrize(
    "options",
    [
        {"clip_norm": 0.1},
        {"accumulate": 3},
        {"accumulate": 4, "clip_norm": 0.1},
        {"temperature": 3.0, "distillation": "kl"},
        {"detach_teacher": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("optimizer", quick.only(["adamw"], ["sgd", "adamw"]))
def test_it_holds_when_clipped_in_parts_and_under_other_losses(options, optimizer):
    *earlier, b1, b2 = batches(8)
    level = level_of(Net(), OPTIMIZERS[optimizer], **options)
    for batch in earlier:
        level.theta_step(batch)
    expected, direct = by_double_backward(level, b1, b2)
    assert (expected - direct).abs().max() > 1e-6
    torch.testing.assert_close(hypergradient(level, b1, b2), expected, rtol=0, atol=1e-8)


def of_method(name, **options):
    """A method's algorithm in its step with ω."""
    return METHODS[name].omega(TrainConfig.model_validate({"algorithm": name, "cycle_length": 1, **options}))


@pytest.mark.parametrize("optimizer", quick.only(["adamw"], ["sgd", "adamw"]))
@pytest.mark.parametrize("outer", OBJECTIVES)
@pytest.mark.parametrize("name", ["blo", "hyper", "hyper-v2"])
def test_outer_objectives_without_weights_reach_omega_through_theta_alone(name, outer, optimizer):
    *earlier, b1, b2 = batches(8)
    level = level_of(Net(dropout=0.2), OPTIMIZERS[optimizer], clip_norm=0.5)
    for batch in earlier:
        level.theta_step(batch)
    expected, _ = by_double_backward(level, b1, b2, OBJECTIVES[outer])
    options = {"one_sided": False, "averaging": 0.0} if name == "hyper-v2" else {}
    found = hypergradient(level, b1, b2, of_method(name, outer=outer, **options))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_clo_without_weights_in_its_outer_objective_adds_the_hypergradient_on_b1(optimizer):
    """Eq. 9 with O instead of L: λ1 ∇ω O_B1(θ') + λ2 ∇ω O_B2(θ')."""
    *earlier, b1, b2 = batches(8)
    level = level_of(Net(), OPTIMIZERS[optimizer])
    for batch in earlier:
        level.theta_step(batch)
    on_b2, _ = by_double_backward(level, b1, b2, OBJECTIVES["ce"])
    on_b1, _ = by_double_backward(level, b1, b1, OBJECTIVES["ce"])
    level.config = level.config.model_copy(update={"lr_omega": level.rate / 2})  # λ1 / λ2 = 2
    found = hypergradient(level, b1, b2, of_method("clo-v1", outer="ce"))
    expected = 2 * on_b1 + on_b2
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_one_sided_differences_cost_a_forward_less_and_err_little():
    forwards = []

    class Counted(Net):
        def record(self, batch):
            forwards.append(torch.is_grad_enabled())
            return super().record(batch)

    *earlier, b1, b2 = batches(8)
    level = level_of(Counted(), OPTIMIZERS["adamw"])
    for batch in earlier:
        level.theta_step(batch)
    expected, _ = by_double_backward(level, b1, b2, OBJECTIVES["ce"])
    forwards.clear()
    found = hypergradient(level, b1, b2, of_method("hyper-v2"))
    assert forwards == [True, True, False]
    assert 0 < (found - expected).norm() < 0.05 * expected.norm()


def test_under_bf16_a_one_sided_difference_starts_from_a_forward_in_float32():
    rows = toy_rows()
    b1, b2 = rows.collate(range(32)), rows.collate(range(32, 64))

    def found(dtype):
        level = level_of(toy_mlp(dropout=0.1), OPTIMIZERS["sgd"], Runtime(CPU.device, dtype))
        level.rate = 1.0
        return hypergradient(level, b1, b2, of_method("hyper-v2"))

    exact, rounded = found(torch.float32), found(torch.bfloat16)
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_an_averaged_gradient_of_the_outer_objective_halves_towards_each_new_one():
    b1, b2, b3 = batches(3)
    gradients, averages = [], []
    level = level_of(Net(), OPTIMIZERS["sgd"])
    gradient, average = level.gradient, level.moving_average
    level.gradient = lambda *given: (result := gradient(*given), gradients.append(result[1]))[0]
    level.moving_average = lambda *given: (result := average(*given), averages.append([x.clone() for x in result]))[0]
    algorithm = Hyper(OBJECTIVES["ce"], averaging=0.5)
    for batch in (b2, b3):
        hypergradient(level, b1, batch, algorithm)
    for first, second, one, both in zip(*gradients, *averages, strict=True):
        torch.testing.assert_close(one, first)
        torch.testing.assert_close(both, (first + second) / 2)


def test_within_a_cycle_theta_takes_plain_steps():
    (b1,) = batches(1)
    level = level_of(Net(), OPTIMIZERS["adamw"])
    level.start_epoch(iter([]))  # no batch of D2 is drawn
    before = level.state["omega"].clone()
    assert Hyper(OBJECTIVES["ce"], cycle_length=3).step(level, b1, 0) == 1
    assert torch.equal(level.state["omega"], before)


def test_dropout_has_the_masks_of_the_step_that_theta_took():
    b1, b2 = batches(2)
    level = level_of(Net(dropout=0.3), OPTIMIZERS["sgd"])
    expected, direct = by_double_backward(level, b1, b2)
    found = hypergradient(level, b1, b2)
    torch.testing.assert_close(found - direct, expected - direct, rtol=1e-3, atol=1e-8)


class MovingTeachers(ExitObjective):
    """The mistake: detached teachers that are perturbed like everything else."""

    def terms(self, record, state, teacher=None):
        return super().terms(record, state)


def test_without_frozen_teachers_the_distillation_entries_have_wrong_signs():
    *earlier, b1, b2 = batches(20)
    through = {}
    for kind in (ExitObjective, MovingTeachers):
        objective = kind.of(TrainConfig(parametrisation="raw"), 3)
        level = level_of(Net(), OPTIMIZERS["sgd"], objective=objective)
        level.rate = 0.1
        for batch in earlier:  # exits that agree, more or less: the student's part of the derivative is small
            level.theta_step(batch)
        level.rate = 1e-3
        expected, direct = by_double_backward(level, b1, b2)
        through[kind] = (hypergradient(level, b1, b2) - direct)[3:]
    right = (expected - direct)[3:].sign()
    assert torch.equal(through[ExitObjective].sign(), right)
    assert (through[MovingTeachers].sign() != right).sum() >= 2


def test_on_an_encoder():
    made = encoder(
        "bert", layers=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.3,
        attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = build_model(made, ("no", "yes"), pooling="cls", train=TrainConfig(exit_dropout=0.0))
    for exit_ in model.heads:
        torch.nn.init.normal_(exit_.weight, std=0.3)
    b1, b2 = text_batch(seed=1), text_batch(seed=2)
    level = level_of(model, OPTIMIZERS["sgd"], parametrisation="exit_softmax")
    expected, direct = by_double_backward(level, b1, b2)
    found = hypergradient(level, b1, b2)
    through = expected - direct
    assert through.abs().max() > 1e-4
    torch.testing.assert_close(found - direct, through, rtol=0.02, atol=0.01 * through.abs().max().item())


@pytest.mark.parametrize("options", [{}, {"accumulate": 3, "omega_forward": "eval"}], ids=str)
def test_theta_running_statistics_and_generators_are_left_where_blo_leaves_them(options):
    def after(algorithm):
        b1, b2 = batches(2)
        level = level_of(Net(dropout=0.3, normalised=True), OPTIMIZERS["adamw"], clip_norm=0.5, **options)
        level.start_epoch(iter([b2]))
        torch.manual_seed(7)
        algorithm.step(level, b1, 0)
        assert all(p.grad is None for p in level.theta.values())
        return {**level.model.state_dict(), **level.optimizer_tensors(), "next": torch.rand(1)}

    ours, blos = after(Hyper()), after(BLO())
    assert not torch.equal(ours.pop("state/omega"), blos.pop("state/omega"))
    assert ours.keys() == blos.keys()
    assert all(torch.equal(ours[name], blos[name]) for name in ours)


def test_the_forwards_for_omega_leave_running_statistics_alone():
    (b1,) = batches(1)
    level = level_of(Net(normalised=True), OPTIMIZERS["sgd"])
    before = copy.deepcopy(dict(level.model.named_buffers()))
    level.losses(b1, b1)
    level.gradient(b1)
    assert all(torch.equal(b, before[name]) for name, b in level.model.named_buffers())
    assert level.model.training


def test_under_bf16_it_is_the_same_but_for_rounding():
    rows = toy_rows()
    b1, b2 = rows.collate(range(32)), rows.collate(range(32, 64))

    def through(dtype):
        level = level_of(toy_mlp(dropout=0.0), OPTIMIZERS["sgd"], Runtime(CPU.device, dtype), parametrisation="raw")
        level.rate = 1.0
        found = hypergradient(level, b1, b2)
        return found - level.losses(b2)[0]

    exact, rounded = through(torch.float32), through(torch.bfloat16)
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_a_step_costs_eight_units():
    units = []

    class Counted(Net):
        def record(self, batch):
            units.append(3 if torch.is_grad_enabled() else 1)
            return super().record(batch)

    b1, b2 = batches(2)
    hypergradient(level_of(Counted(), OPTIMIZERS["adamw"]), b1, b2)
    assert units == [3, 3, 1, 1]


def test_without_a_step_of_theta_it_is_blos_gradient():
    b1, b2 = batches(2)
    level = level_of(Net(), OPTIMIZERS["sgd"], parametrisation="raw")
    level.rate = 0.0
    torch.testing.assert_close(hypergradient(level, b1, b2), level.losses(b2)[0])


def test_what_a_batch_does_not_touch_has_no_part_in_the_direction():
    """An embedding that no row has ever used: AdamW would divide its v by ε alone."""
    model = Net()
    model.layers[0].weight.register_hook(lambda g: g * torch.tensor([1.0, 1, 1, 1, 1, 0]))
    (b1,) = batches(1)
    level = level_of(model, OPTIMIZERS["adamw"])
    taken = level.look_ahead(b1)
    d = dict(zip(taken.start, taken.pullback([torch.ones_like(p) for p in level.theta.values()]), strict=True))
    assert (d["layers.0.weight"][:, 5] == 0).all()
    assert (d["layers.0.weight"][:, :5] != 0).all()


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (torch.optim.RMSprop, {}),
        (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.1}),
        (torch.optim.SGD, {"maximize": True}),
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.AdamW, {"maximize": True}),
    ],
)
def test_an_optimiser_that_cannot_be_differentiated_is_refused(optimizer, options):
    b1, b2 = batches(2)
    with pytest.raises(ConfigError, match=f"a hypergradient can't differentiate a step of {optimizer.__name__}"):
        hypergradient(level_of(Net(), lambda p: optimizer(p, lr=1.0, **options)), b1, b2)


@pytest.mark.slow
def test_it_trains():
    settings = TrainConfig(
        algorithm="hyper", lr_theta=2e-2, lr_omega=1e-2, batch_size=8, max_epochs=12, precision="fp32"
    )
    result = fit(toy_mlp(), toy_rows(160), settings, validation=toy_rows(200, seed=1))
    assert result.best.score > 0.7
    assert np.abs(np.array(result.reports[-1].weights["ce"]) - 1).max() > 0.1
    assert result.ended != "diverged"
