"""How far loss weights move: measured in training, bounded before it, and said where optimisers could not differ."""

import math

import pytest
import torch
from toys import toy_mlp, toy_rows

from leebert.config import TrainConfig
from leebert.methods import METHODS
from leebert.omega import MOVED, learns_omega, reach, travel
from leebert.train import fit


def config(**options):
    return TrainConfig(**{"lr_theta": 1e-2, "batch_size": 8, "max_epochs": 3, "precision": "fp32", **options})


def test_travel_is_the_largest_change_and_the_largest_difference_within_a_kind():
    start = torch.ones(4)
    now = torch.tensor([0.7, 0.8, 1.25, 1.2])
    found = travel(now, start, torch.tensor([False, False, True, True]))
    assert found == {"moved": pytest.approx(0.3), "spread": pytest.approx(0.1)}
    assert travel(now[:2], start[:2], torch.tensor([False, False]))["spread"] == pytest.approx(0.1)


LEARNED = [name for name in METHODS if learns_omega(name)]


@pytest.mark.parametrize("algorithm", LEARNED)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_no_run_moves_further_than_its_reach_and_an_adam_run_comes_near(algorithm, optimizer):
    settings = config(algorithm=algorithm, lr_omega=1e-3, omega_optimizer=optimizer, cycle_length=3)
    result = fit(toy_mlp(), toy_rows(), settings, held_out=toy_rows(seed=1))
    moved = result.reports[-1].omega["moved"]
    most = reach(settings, result.reports[-1].theta_updates, 2).weights
    assert 0 < moved <= 1.02 * most
    if optimizer == "adam":
        assert moved > most / 4


@pytest.mark.parametrize("parametrisation", ["raw", "softplus", "exit_softmax", "group_softmax"])
def test_the_reach_holds_under_every_parametrisation(parametrisation):
    settings = config(algorithm="clo-v2", lr_omega=2e-3, parametrisation=parametrisation)
    result = fit(toy_mlp(), toy_rows(), settings, held_out=toy_rows(seed=1))
    most = reach(settings, result.reports[-1].theta_updates, 2).weights
    assert most / 4 < result.reports[-1].omega["moved"] <= 1.02 * most


def test_fixed_weights_do_not_move():
    for algorithm in ("uniform", "rand"):
        assert fit(toy_mlp(), toy_rows(), config(algorithm=algorithm)).reports[-1].omega["moved"] == 0


def test_the_reach_by_hand():
    adam = reach(config(algorithm="blo", lr_omega=1e-4, parametrisation="raw"), 200, 2)
    assert adam.weights == pytest.approx(200 * 1e-4)
    assert (adam.moves, adam.lr_omega) == (False, pytest.approx(MOVED / 200))
    softmax = reach(config(algorithm="blo", lr_omega=1e-4, parametrisation="exit_softmax"), 200, 2)
    assert softmax.weights == pytest.approx(2 * adam.weights)
    sgd = {"omega_optimizer": "sgd", "parametrisation": "raw", "lr_omega": 1e-2, "lr_theta": 1e-3, "cycle_length": 4}
    clo = reach(config(algorithm="clo-v2", **sgd), 400, 3)
    assert clo.weights == pytest.approx(math.log(3) * (400 * 1e-3 + 100 * 1e-2))
    alone = reach(config(algorithm="clo-v2", omega_in_cycle=False, **sgd), 400, 3)
    assert alone.weights == pytest.approx(math.log(3) * (100 * 1e-3 + 100 * 1e-2))
    blo = reach(config(algorithm="blo", **{k: v for k, v in sgd.items() if k != "cycle_length"}), 400, 3)
    assert blo.weights == pytest.approx(math.log(3) * 400 * 1e-2), "λ1 is θ's alone"


def test_the_needed_rate_moves_the_weights_by_the_stated_amount():
    for optimizer in ("adam", "sgd"):
        slow = config(algorithm="clo-v1", lr_theta=1e-6, lr_omega=1e-7, omega_optimizer=optimizer)
        needed = reach(slow, 100, 2).lr_omega
        assert reach(slow.model_copy(update={"lr_omega": needed}), 100, 2).weights == pytest.approx(MOVED)
