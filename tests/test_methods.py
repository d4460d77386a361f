"""Every method of the table: its defining property, on any multi-exit model, and that it trains and goes on bit for bit."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from encoders import OF_ENCODERS
from torch.nn import functional as F
from toys import toy_mlp, toy_rows
from typer.testing import CliRunner

from leebert.config import TrainConfig
from leebert.errors import ConfigError
from leebert.losses import cross_entropy_per_exit
from leebert.methods import METHODS, applies, has_stages, mean_cost, most_epochs, specific, stage_costs
from leebert.record import Record
from leebert.stages import epochs_of, method, of_exit
from leebert.train import fit, train_epochs

ANYWHERE = [name for name in METHODS if name not in OF_ENCODERS]


def config(name: str, **options: Any) -> TrainConfig:
    return TrainConfig(
        **{"algorithm": name, "lr_theta": 1e-2, "lr_omega": 1e-2, "batch_size": 8, "max_epochs": 2, **options}
    )


def made_record(m: int = 4, b: int = 5, k: int = 3, seed: int = 0) -> Record:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(m, b, k, generator=g, dtype=torch.float64, requires_grad=True)
    return Record(logits, torch.randint(0, k, (b,), generator=g))


def loss_of(stage: Any, record: Record, state: Any = None) -> torch.Tensor:
    state = state or stage.objective.initial(torch.Generator())
    return stage.objective.weights(state).to(record.logits) @ stage.objective.terms(record, state)


def ce(record: Record) -> torch.Tensor:
    return cross_entropy_per_exit(record.logits, record.labels)


# The table.


def test_every_option_that_a_method_names_is_an_option_of_training():
    assert set(TrainConfig.model_fields) >= specific()


def test_an_option_applies_to_those_that_read_it():
    assert applies("batch_size", "pabee")
    assert applies("teachers", "uniform")
    assert not applies("teachers", "pabee")
    assert not applies("teachers", "lle")
    assert applies("cycle_length", "fastbert-clo-v2")
    assert not applies("cycle_length", "blo")
    assert applies("keep", "truncated")
    assert not applies("keep", "clo-v2")


# Each method's own property.


def test_finetuning_keeps_one_exit():
    result = fit(toy_mlp(), toy_rows(), config("finetune"), validation=toy_rows(40, seed=1))
    assert result.model.num_exits == 1
    assert result.model.exit_layers == (3,)
    assert result.validation.layers == (3,)
    assert result.validation.depth == 3


@pytest.mark.parametrize(
    ("name", "stages"),
    [("finetune", ["finetune"]), ("truncated", ["finetune"]), ("theseus", ["finetune", "replacing", "successor"])],
)
def test_what_remains_of_a_network_learns_from_labels_alone(name, stages):
    told = method(config(name), 4)
    assert [stage.name for stage in told] == stages
    one = made_record(m=1)
    assert torch.allclose(loss_of(told[-1], one), ce(one)[0])
    assert told[-1].teacher is None
    assert all(
        told[-1].trains(part) for part in ("backbone.embeddings.weight", "backbone.layer.0.weight", "heads.0.bias")
    )


@pytest.mark.parametrize(
    ("name", "rule"), [("pabee", "patience"), ("pcee-bert", "pcee"), ("f-pabee", "f-pabee"), ("beem", "beem")]
)
def test_pabee_and_criteria_on_its_exits_weigh_them_by_their_layer(name, rule):
    (stage,) = method(config(name), 4)
    record = made_record()
    expected = (ce(record) * torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)).sum() / 10
    assert torch.allclose(loss_of(stage, record), expected)
    assert METHODS[name].exits == rule


def test_fastberts_only_teacher_is_its_last_exit():
    (stage,) = method(config("fastbert"), 4)
    record = made_record()
    teacher = F.softmax(record.logits[-1], -1).detach()
    soft = sum(-(teacher * F.log_softmax(record.logits[m], -1)).sum(-1).mean() for m in range(3))
    assert torch.allclose(loss_of(stage, record), ce(record).sum() + soft / 4)


def test_fastberts_own_second_stage_reads_no_labels_and_moves_exits_only_ten_times_as_fast():
    settings = config("fastbert", two_stage=True)
    first, second = method(settings, 4)
    assert (first.lr_theta, second.lr_theta) == (None, 10 * settings.lr_theta)
    record = made_record()
    teacher = F.softmax(record.logits[-1], -1).detach()
    kl = sum((teacher * (teacher.log() - F.log_softmax(record.logits[m], -1))).sum(-1).mean() for m in range(3))
    assert torch.allclose(loss_of(second, record), kl)
    other = dataclasses.replace(record, labels=(record.labels + 1) % 3)
    assert torch.equal(loss_of(second, other), loss_of(second, record))
    assert [n for n in ("layers.0.weight", "heads.0.bias", "heads.3.bias") if second.trains(n)] == ["heads.0.bias"]
    assert first.objective.weights(first.objective.initial(torch.Generator())).tolist() == [0, 0, 0, 1]


def test_deebert_trains_the_backbone_with_the_last_exit_then_the_other_exits_on_it():
    snapshots = []
    settings = config("deebert")
    model = toy_mlp()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in train_epochs(model, toy_rows(), settings, validation=toy_rows(40, seed=1)):
        snapshots.append({name: p.detach().clone() for name, p in model.named_parameters()})
    assert len(snapshots) == 4
    first, second = snapshots[1], snapshots[3]
    for name in start:
        of_others = of_exit(name) in (0, 1)
        assert torch.equal(start[name], first[name]) == of_others, name
        assert torch.equal(first[name], second[name]) != of_others, name


def test_weight_decay_does_not_reach_what_a_stage_freezes():
    model = toy_mlp()
    start = model.heads[0].weight.detach().clone()
    next(iter(train_epochs(model, toy_rows(), config("deebert", weight_decay=0.5))))
    assert torch.equal(model.heads[0].weight, start)


def test_shallow_deeps_weights_grow_from_little_to_an_exits_share_of_the_depth():
    (stage,) = method(config("shallow-deep"), 4)
    record = made_record()
    state = stage.objective.initial(torch.Generator())
    assert torch.allclose(stage.objective.weights(state), torch.tensor([0.01, 0.01, 0.01, 1.0]))
    seen = []
    for progress in (0.25, 0.5, 0.75, 1.0):
        state = stage.objective.after_step(record, state, progress)
        seen.append(stage.objective.weights(state))
    assert torch.allclose(seen[1], torch.tensor([0.135, 0.26, 0.385, 1.0]))
    assert torch.allclose(seen[-1], torch.tensor([0.25, 0.5, 0.75, 1.0]))
    assert all((a <= b).all() for a, b in zip(seen, seen[1:], strict=False))


def test_dbts_loss_is_the_papers_and_its_teacher_is_detached():
    (stage,) = method(config("dbt", alpha=0.3, temperature=2.0), 4)
    record = made_record()
    teacher = F.softmax(record.logits[-1] / 2, -1).detach()
    soft = sum(-(teacher * F.log_softmax(record.logits[m] / 2, -1)).sum(-1).mean() for m in range(3))
    loss = loss_of(stage, record)
    assert torch.allclose(loss, 0.7 * ce(record).sum() + 0.3 * 4 * soft)
    (given,) = torch.autograd.grad(loss, record.logits)
    (hard,) = torch.autograd.grad(0.7 * ce(record)[-1], record.logits)
    assert torch.allclose(given[-1], hard[-1])


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_dbts_temperature_rises_while_the_teacher_is_too_sure_and_never_falls(classes):
    (stage,) = method(config("dbt"), 4)
    sure, unsure = Record(torch.zeros(4, 5, classes)), Record(torch.zeros(4, 5, classes))
    sure.logits[-1, :, 0] = 9.0
    state = stage.objective.initial(torch.Generator())
    temperatures = []
    for _ in range(200):
        state = stage.objective.after_step(sure, state, 0.5)
        temperatures.append(float(state["temperature"]))
    assert temperatures == sorted(temperatures)
    assert temperatures[0] == pytest.approx(1.05)
    settled = F.softmax(sure.logits[-1] / temperatures[-1], -1).amax(-1).mean()
    assert settled == pytest.approx((1 + 1 / classes) / 2, abs=0.03)
    assert stage.objective.after_step(unsure, state, 0.5)["temperature"] == state["temperature"]


def test_lle_and_fastbert_clo_v2_are_clo_v2_with_other_teachers():
    for name, pairs in (("lle", 6), ("fastbert-clo-v2", 3), ("clo-v2", 12)):
        (stage,) = method(config(name), 4)
        assert stage.objective.num_terms == 4 + pairs
        assert stage.algorithm == method(config("clo-v2"), 4)[0].algorithm


def test_mixed_training_begins_with_the_last_exit_alone():
    model = toy_mlp()
    start = model.heads[0].weight.detach().clone()
    reports = train_epochs(model, toy_rows(), config("clo-v2", finetune_first=True, first_epochs=1))
    assert next(reports).stage == "finetune"
    assert torch.equal(model.heads[0].weight, start)
    assert next(reports).stage == "joint"
    assert not torch.equal(model.heads[0].weight, start)


# What holds for all.


def test_a_transformation_that_does_not_fit_is_refused_before_any_training():
    with pytest.raises(ConfigError, match="no attention heads"):
        next(train_epochs(toy_mlp(), toy_rows(), config("headprune")))


def test_a_model_that_cannot_drop_exits_is_refused_before_any_training():
    class Fixed(torch.nn.Module):
        num_exits = 3

        def record(self, batch: Any, keep: Any = "logits") -> Record:
            raise AssertionError("nothing is run")

    with pytest.raises(ConfigError, match="one exit, and Fixed has no `keep_exits`"):
        next(train_epochs(Fixed(), toy_rows(), config("finetune")))


@pytest.mark.parametrize(("name", "options"), [("deebert", {}), ("fastbert", {"two_stage": True})])
def test_a_stage_that_would_train_nothing_is_refused_before_any_training(name, options):
    model = toy_mlp()
    model.keep_exits([3])
    with pytest.raises(
        ConfigError, match=f"{name}: its stage 'exits' would train no parameter of a ThreeExitMLP with 1 exit"
    ):
        next(train_epochs(model, toy_rows(), config(name, **options)))


def test_methods_lists_all_of_them():
    from leebert.cli import app

    shown = CliRunner().invoke(app, ["methods", "--json"])
    told = json.loads(shown.stdout)
    assert [row["name"] for row in told] == list(METHODS)
    assert {"name", "title", "source", "trains", "exits", "cost", "differs", "options"} <= set(told[0])
    table = CliRunner().invoke(app, ["methods"], env={"COLUMNS": "80"})
    assert table.exit_code == 0
    words = set(table.stdout.split())
    for told in METHODS.values():  # no word is cut
        assert {told.name, *told.title.split(), *told.trains.split(), *told.cost.split()} <= words


@pytest.mark.parametrize(
    "options", [{}, {"first_epochs": 3}, {"finetune_first": True}, {"two_stage": True, "max_epochs": 5}]
)
def test_what_a_method_may_take_is_known_without_its_stages(options):
    for name in METHODS:
        settings = config(name, prune_rounds=3, **options)
        stages = method(settings, 4)
        assert most_epochs(settings) == sum(epochs_of(stages, settings)), name
        assert has_stages(settings) == (len(stages) > 1), name


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("pabee", {}, [1]),
        ("clo-v2", {"cycle_length": 2}, [4 / 3]),
        ("blo", {"finetune_first": True}, [1, 4 / 3]),
        ("fastbert", {"two_stage": True}, [1, 1 / 3]),
        ("deebert", {}, [1, 1 / 3]),
        ("truncated", {"keep": 0.75}, [0.75]),
        ("pkd", {"keep": 0.5}, [1, 1 / 3 + 0.5]),
        ("theseus", {"keep": 0.5}, [1, 2 / 3, 0.5]),
        # Rounds keep 3/4 and 1/2, of attention, which is a third of a layer; of all that a student trains.
        ("headprune", {"keep": 0.5, "prune_rounds": 2}, [1, 1 - 0.375 / 3]),
        ("cost-eff", {"keep": 0.5, "prune_rounds": 2}, [1, 4 / 3, 1 / 3 + 0.625, 1 / 3 + 0.5]),
    ],
)
def test_an_updates_cost_is_the_mean_of_its_stages(name, options, expected):
    """Forward 1, backward 2, as the table's `cost` tells it."""
    settings = config(name, max_epochs=2, **options)
    costs = stage_costs(settings)
    assert [cost for _, cost in costs] == pytest.approx(expected)
    told = sum(epochs * cost for (epochs, _), cost in zip(costs, expected, strict=True))
    assert mean_cost(settings) == pytest.approx(told / most_epochs(settings))


@pytest.mark.parametrize(
    ("name", "rounds", "max_epochs", "expected"),
    [
        ("headprune", 4, 10, [10, 2, 3, 2, 3]),
        ("headprune", 4, 3, [3, 1, 1, 1, 1]),  # at least one epoch after each cut
        ("cost-eff", 3, 8, [8, 8, 2, 3, 3, 8]),
        ("theseus", 4, 5, [5, 2, 3]),
        ("theseus", 4, 1, [1, 1, 1]),
    ],
)
def test_stages_that_share_the_epochs_leave_none_over(name, rounds, max_epochs, expected):
    settings = config(name, prune_rounds=rounds, max_epochs=max_epochs)
    assert epochs_of(method(settings, 4), settings) == expected
