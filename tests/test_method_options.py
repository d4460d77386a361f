"""What the table says of options: each that a method names does something to what it trains, all others nothing."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import pytest
import quick
import torch
from encoders import OF_ENCODERS, batch, encoder
from test_methods_on_encoders import AS_PABEE
from toys import toy_mlp, toy_rows

from leebert.config import TrainConfig, parse
from leebert.errors import ConfigError
from leebert.methods import METHODS, applies, specific
from leebert.model import build_model
from leebert.record import TensorSamples
from leebert.testing.methods import ALSO, CHANGED
from leebert.train import fit
from leebert.training_options import idle


@functools.cache
def weights(name: str, on_encoder: bool, few: bool = False, **options: Any) -> str:
    """A digest of the parameters that a method leaves after an epoch a stage, of an encoder of four layers or of the toy."""
    settings = TrainConfig(
        **{
            "algorithm": name, "lr_theta": 1e-2, "lr_omega": 1e-2, "batch_size": 4, "max_epochs": 1, "prune_rounds": 2,
            "precision": "fp32", **options,
        }
    )  # fmt: skip
    if on_encoder:
        torch.manual_seed(0)
        made = batch(8 if few else 24, length=26)
        rows = TensorSamples(**{**made, "labels": made["input_ids"].sum(1) % 2})
        model: Any = build_model(encoder("bert"), ("no", "yes"))
    else:
        rows, model = toy_rows(32 if few else 96), toy_mlp()
    trained = fit(model, rows, settings).model
    digest = hashlib.sha256()
    for place, parameter in trained.named_parameters():
        digest.update(place.encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def test_every_option_that_only_some_methods_read_is_changed_here():
    default = TrainConfig()
    assert set(CHANGED) == specific()
    assert all(getattr(default, option) != value for option, value in CHANGED.items())


@pytest.mark.parametrize("name", quick.only(quick.METHODS, METHODS))
def test_options_that_a_method_does_not_read_change_nothing(name):
    """What `applies` says is true: such options may be left out of a configuration's identity."""
    ignored = {option: value for option, value in CHANGED.items() if not applies(option, name)}
    on_encoder = name in OF_ENCODERS
    assert weights(name, on_encoder, few=True) == weights(name, on_encoder, few=True, **ignored)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("fastbert", {"two_stage": True, "finetune_first": True}),
        ("fastbert", {"two_stage": True, "distillation": "kl"}),
        ("fastbert", {"two_stage": True, "detach_teacher": False}),
        ("fastbert", {"two_stage": True, "gradient_equilibrium": True}),
        ("pabee", {"first_epochs": 2}),
        ("clo-v2", {"finetune_first": False, "first_epochs": 2}),
    ],
)
def test_an_option_that_does_nothing_beside_the_others_is_reported_and_does_nothing(name, given):
    option = next(reversed(given))
    assert idle(option, name, given)
    before = {other: value for other, value in given.items() if other != option}
    on_encoder = option == "gradient_equilibrium"
    assert weights(name, on_encoder, **before) == weights(name, on_encoder, **given)


@pytest.mark.parametrize("name", METHODS)
def test_no_option_is_called_idle_that_is_searched_beside_what_it_takes(name):
    for option in METHODS[name].options:
        assert not idle(option, name, {"finetune_first": ..., option: CHANGED[option]})
        assert not idle(option, name, {option: CHANGED[option], **ALSO.get(option, {})})


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("fastbert", {"first_epochs": 2, "two_stage": ...}),
        ("fastbert", {"distillation": "kl", "two_stage": ...}),
        ("fastbert", {"finetune_first": False, "two_stage": True}),
        ("fastbert", {"detach_teacher": True, "two_stage": True}),
        ("fastbert", {"distillation": "cross_entropy", "two_stage": True}),
        ("fastbert", {"gradient_equilibrium": False, "two_stage": True}),
        ("pabee", {"first_epochs": None}),
        ("deebert", {"first_epochs": 2}),
    ],
)
def test_defaults_and_what_is_searched_are_never_in_the_way(name, given):
    assert not idle(next(iter(given)), name, given)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "option"), [(name, o) for name in METHODS if name not in AS_PABEE for o in sorted(METHODS[name].options)]
)
def test_options_that_a_method_names_change_what_it_trains(name, option):
    on_encoder = name in OF_ENCODERS or option == "gradient_equilibrium"
    takes = ALSO.get(option, {})
    assert weights(name, on_encoder, **takes) != weights(name, on_encoder, **{**takes, option: CHANGED[option]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"algorithm": "blo", "outer": "ce", "gradient_equilibrium": True},
            "outer: ce takes a hypergradient, .* remove one",
        ),
        ({"algorithm": "lle", "outer": "score", "gradient_equilibrium": True}, "outer: score takes a hypergradient"),
        (
            {"algorithm": "clo-v1", "outer": "ce", "reuse_forward": True},
            "reuse_forward: with outer: ce, L_B1 is not needed",
        ),
        (
            {"algorithm": "hyper-v2", "fixed_d2": 0.2, "finetune_first": True},
            "fixed_d2: with finetune_first, θ first trains",
        ),
        ({"algorithm": "uniform-d1", "fixed_d2": 0.2, "finetune_first": True}, "fixed_d2: with finetune_first"),
    ],
)
def test_options_that_exclude_each_other_are_refused_with_the_configuration(options, message):
    with pytest.raises(ConfigError, match=message):
        parse(TrainConfig, options, "file")
