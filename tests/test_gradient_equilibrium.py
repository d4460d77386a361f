"""Gradient equilibrium against autograd: the factors on a linear chain, an encoder's gradients, and who has it when."""

import pytest
import quick
import torch
from encoders import batch, encoder
from toys import ALGORITHMS, toy_mlp, toy_rows

from leebert.config import TrainConfig
from leebert.equilibrium import branch_and_trunk
from leebert.errors import ConfigError
from leebert.losses import cross_entropy
from leebert.methods import METHODS
from leebert.model import build_model, load_model
from leebert.record import TensorSamples
from leebert.train import fit, train_epochs


@pytest.mark.parametrize("m", [1, 2, 5])
def test_each_exits_gradient_reaches_a_layer_by_the_number_of_exits_above_it(m):
    """A chain x_k = a_k·x_{k−1} with exits y_k = c_k·x_k, in factors of the gradients without equilibrium."""

    def gradients(balanced):
        a = torch.linspace(0.5, 1.5, m, dtype=torch.float64).requires_grad_()
        c = torch.linspace(2.0, 3.0, m, dtype=torch.float64).requires_grad_()
        x, exits = torch.ones((), dtype=torch.float64), []
        for k in range(m):
            seen = x = a[k] * x
            if balanced:
                seen, x = branch_and_trunk(x, k, m)
            exits.append(c[k] * seen)
        found = [torch.autograd.grad(y, (a, c), retain_graph=True) for y in exits]
        return torch.stack(exits), torch.stack([g for g, _ in found]), torch.stack([g for _, g in found])

    (values, plain, own), (same, balanced, same_own) = gradients(False), gradients(True)
    assert torch.equal(values, same)
    assert torch.equal(own, same_own), "an exit's own parameters learn as before"
    for exit_ in range(m):
        for layer in range(m):
            factor = 1 / (m - layer) if layer <= exit_ else 0  # with layers from 1: 1/(M − layer + 1)
            expected = factor * plain[exit_, layer]
            assert balanced[exit_, layer].item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_in_an_encoder_layers_learn_from_the_mean_of_the_exits_above_and_exits_as_before(family):
    model = build_model(encoder(family, layers=3), ("no", "yes")).eval()
    for exit_ in model.heads:
        torch.nn.init.normal_(exit_.weight, std=0.3)
    rows, found = batch(), []
    for balanced in (False, True):
        model.gradient_equilibrium = balanced
        model.zero_grad(set_to_none=True)
        logits = model.record(rows).logits
        cross_entropy(logits, rows["labels"]).backward()
        found.append((logits, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (logits, plain), (same, balanced) = found
    assert torch.equal(logits, same)
    for name, gradient in plain.items():
        if ".layer." in name:
            factor = 1 / (3 - int(name.split(".layer.")[1][0]))
        elif "embedding" in name:
            factor = 1 / 3
        elif "albert_layer_groups" in name:
            continue  # one module in all three places
        else:
            assert "heads" in name or "pooler" in name
            factor = 1.0
        torch.testing.assert_close(balanced[name], factor * gradient, rtol=1e-4, atol=1e-7)


def test_what_a_student_imitates_is_no_exit_so_a_layers_own_state_teaches_it_in_full():
    model = build_model(encoder("bert", layers=3), ("no", "yes")).eval()
    found = []
    for balanced in (False, True):
        model.gradient_equilibrium = balanced
        model.zero_grad(set_to_none=True)
        model.record(batch(), "states").states[-1].square().sum().backward()
        found.append(model.backbone.encoder.layer[2].output.dense.weight.grad)
    plain, same = found
    assert plain.abs().sum() > 0
    torch.testing.assert_close(same, plain)


def text_rows(n=16):
    return TensorSamples(**batch(n, padded=False))


def config(**options):
    return TrainConfig(batch_size=4, max_epochs=1, lr_theta=1e-2, precision="fp32", **options)


@pytest.mark.parametrize("algorithm", quick.only(ALGORITHMS.keys() & {*quick.METHODS}, ALGORITHMS))
def test_training_sets_it_and_what_is_saved_does_not_have_it(algorithm, tmp_path):
    model = build_model(encoder("bert", layers=2), ("no", "yes"))
    fit(model, text_rows(), config(algorithm=algorithm, gradient_equilibrium=True))
    # What hyper differentiates is a step along a loss's gradient.
    assert model.gradient_equilibrium == METHODS[algorithm].reads("gradient_equilibrium")
    model.save_pretrained(tmp_path)
    assert "equilibrium" not in (tmp_path / "config.json").read_text()
    assert not load_model(tmp_path).gradient_equilibrium
    fit(model, text_rows(), config(algorithm=algorithm))
    assert not model.gradient_equilibrium


def test_it_changes_what_is_trained():
    trained = []
    for balanced in (False, True):
        model = build_model(encoder("bert", layers=2), ("no", "yes"))
        torch.manual_seed(0)
        model._init_weights(model.heads)
        fit(model, text_rows(), config(algorithm="uniform", gradient_equilibrium=balanced))
        trained.append(model.backbone.encoder.layer[0].output.dense.weight.detach())
    assert not torch.allclose(*trained)


def test_a_model_that_cannot_do_it_is_refused():
    with pytest.raises(ConfigError, match="gradient_equilibrium: ThreeExitMLP does not support it"):
        fit(toy_mlp(), toy_rows(), config(gradient_equilibrium=True))
    with pytest.raises(ConfigError, match="gradient_equilibrium: ThreeExitMLP does not support it"):
        # Its first stage, in which one exit trains, could do without.
        next(train_epochs(toy_mlp(), toy_rows(), config(gradient_equilibrium=True, finetune_first=True)))
