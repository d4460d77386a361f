"""How far loss weights move: measured in training, bounded before it, and said where optimisers could not differ."""

import math

import numpy as np
import pytest
import quick
import torch
from made_sweep import made_sweep
from toys import toy_mlp, toy_rows

from leebert.config import TrainConfig
from leebert.methods import METHODS
from leebert.omega import MOVED, learns_omega, reach, travel
from leebert.train import fit
from tune.analysis.compare_sweeps import compare_sweeps
from tune.running import doctor
from tune.running.omega_reach import still_rates
from tune.space import SweepSpec


def config(**options):
    return TrainConfig(**{"lr_theta": 1e-2, "batch_size": 8, "max_epochs": 3, "precision": "fp32", **options})


def test_travel_is_the_largest_change_and_the_largest_difference_within_a_kind():
    start = torch.ones(4)
    now = torch.tensor([0.7, 0.8, 1.25, 1.2])
    found = travel(now, start, torch.tensor([False, False, True, True]))
    assert found == {"moved": pytest.approx(0.3), "spread": pytest.approx(0.1)}
    assert travel(now[:2], start[:2], torch.tensor([False, False]))["spread"] == pytest.approx(0.1)


LEARNED = [name for name in METHODS if learns_omega(name)]


@pytest.mark.parametrize(
    ("optimizer", "algorithm"),
    quick.only(
        [("adam", "slo"), ("adam", "hyper-v2"), ("adam", "clo-v2"), ("sgd", "clo-v2")],
        [(optimizer, algorithm) for optimizer in ("adam", "sgd") for algorithm in LEARNED],
    ),
)
def test_no_run_moves_further_than_its_reach_and_an_adam_run_comes_near(algorithm, optimizer):
    settings = config(algorithm=algorithm, lr_omega=1e-3, omega_optimizer=optimizer, cycle_length=3)
    result = fit(toy_mlp(), toy_rows(), settings, validation=toy_rows(seed=1))
    moved = result.reports[-1].omega["moved"]
    most = reach(settings, result.reports[-1].theta_updates, 2).weights
    assert 0 < moved <= 1.02 * most
    if optimizer == "adam":
        assert moved > most / 4


@pytest.mark.parametrize("parametrisation", ["raw", "softplus", "exit_softmax", "group_softmax"])
def test_the_reach_holds_under_every_parametrisation(parametrisation):
    settings = config(algorithm="clo-v2", lr_omega=2e-3, parametrisation=parametrisation)
    result = fit(toy_mlp(), toy_rows(), settings, validation=toy_rows(seed=1))
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


# What a comparison says of it.

TWO = {"lr_theta": [1e-4], "lr_omega": [1e-4, 1e-2], "cycle_length": [4], "batch_size": [16]}


def with_weights(folder, ce, kd=lambda values: [5.0] * 6, omega=True):
    """A made-up sweep whose runs end with these weights, made from the configuration's values."""

    def ends(values, fold):
        weights, moves = np.asarray(ce(values)), learns_omega(values["algorithm"])
        moved = {"moved": float(np.abs(weights - 1).max()) * moves, "spread": float(np.ptp(weights))}
        return {"weights": {"ce": weights.tolist(), "kd": kd(values)}, **({"omega": moved} if omega else {})}

    algorithms = ["clo-v2", "blo", "uniform-d1", "rand"]
    return made_sweep(folder, "sqlite:///nowhere.db", ends=ends, prune_last=False, space=TWO, algorithms=algorithms)


def nearly_still(values):
    """Adam's steps: proportional to λ2."""
    if values["algorithm"] == "rand":
        return np.array([0.1, 2.0, 1.0, 0.4, 0.3, 1.7])
    return np.ones(6) - (60 * values["lr_omega"] * np.linspace(1, 0.8, 6) if "lr_omega" in values else 0)


@pytest.mark.parametrize("omega", [True, False], ids=["recorded", "older ledger"])
@pytest.mark.parametrize("b", ["blo", "uniform-d1"])
def test_where_weights_stayed_at_their_start_a_comparison_reports_it_and_which_rate_would_move_them(tmp_path, b, omega):
    sweep = with_weights(tmp_path / "s", nearly_still, omega=omega)
    where = {} if b == "blo" else {"lr_omega": "1e-4"}
    (found,) = compare_sweeps([sweep], "clo-v2", b, where=where)
    (one,) = found.still
    assert (one.pairs, one.still, one.alike) == (2 if b == "blo" else 1, 1, 0)
    assert one.moved == pytest.approx(0.006)
    assert one.lr_omega == pytest.approx(MOVED / 60)
    part = "in 1 of 2 pairs " if b == "blo" else ""
    said = (
        f"{one.a} against {one.b}: {part}weights stayed within 0.006 of their start (less than 0.05), so the optimisers could not "
        "differ; λ2 (lr_omega) of about 0.00083 or more would move them"
    )
    assert said in found.scores.warnings
    assert found.as_dict()["still_weights"][0]["still"] == 1


def test_weights_that_differ_between_exits_are_no_reason_to_doubt(tmp_path):
    sweep = with_weights(tmp_path / "s", lambda values: 1 + 0.2 * np.arange(6) * learns_omega(values["algorithm"]))
    (found,) = compare_sweeps([sweep], "clo-v2", "blo")
    assert [(one.still, one.alike, one.in_words()) for one in found.still] == [(0, 0, "")]
    assert not any("optimisers" in warning for warning in found.scores.warnings)


def test_weights_that_moved_together_are_called_alike(tmp_path):
    sweep = with_weights(
        tmp_path / "s", lambda values: np.full(6, 0.4) if learns_omega(values["algorithm"]) else np.ones(6)
    )
    (found,) = compare_sweeps([sweep], "clo-v2", "blo")
    (one,) = found.still
    assert (one.still, one.alike) == (0, 2)
    assert "weights ended equal at all exits (within 0.05), so the optimisers could not differ" in one.in_words()


def test_drawn_weights_other_teachers_and_other_options_are_another_loss(tmp_path):
    sweep = with_weights(tmp_path / "s", nearly_still)
    (found,) = compare_sweeps([sweep], "clo-v2", "rand", where={"lr_omega": "1e-4"})
    assert [one.still + one.alike for one in found.still] == [0]
    other = with_weights(
        tmp_path / "t",
        nearly_still,
        kd=lambda values: [5, 4, 3, 2, 1, 0] if values["algorithm"] == "blo" else [5.0] * 6,
    )
    (found,) = compare_sweeps([other], "clo-v2", "blo")
    assert [one.still + one.alike for one in found.still] == [0]
    (found,) = compare_sweeps([sweep], "1e-4", "1e-2", option="lr_omega")
    assert [(one.pairs, one.still) for one in found.still] == [(2, 0)], "one side has moved"


# What is known before a sweep.

SPACE = {
    "task": "mrpc", "backbone": "made-up", "algorithms": ["uniform", "blo", "clo-v2"], "folds": 2,
    "training": {"max_epochs": 10}, "space": {"lr_omega": [1e-5, 1e-3], "batch_size": [10, 50]},
}  # fmt: skip


def test_the_rates_that_cannot_move_the_weights_are_known_before_the_sweep():
    """2000 rows in 2 folds: 10 epochs × 1000 / 2B are 500 updates at B = 10 and 100 at B = 50, by 2 λ2 each."""
    spec = SweepSpec.model_validate(SPACE)
    slow, *others = still_rates(spec, 2000, 2)
    assert not others, "1e-3 moves them by 0.2 and 1"
    assert (slow.lr_omega, slow.configurations, slow.of, slow.updates) == (1e-5, 4, 4, 100)
    assert (slow.least, slow.most) == (pytest.approx(0.002), pytest.approx(0.01))
    assert slow.needed == pytest.approx(MOVED / 200)
    assert slow.in_words() == (
        "λ2 (lr_omega) 1e-05 × 100 updates moves weights by at most about 0.002 to 0.01, less than 0.05: the optimiser of ω "
        "has no effect; choose λ2 of about 0.00025 or more"
    )


def test_a_range_is_judged_by_its_ends_and_fixed_weights_not_at_all():
    space = {"lr_omega": {"log_range": [1e-5, 1e-2]}, "batch_size": [50]}
    drawn = {**SPACE, "space": space, "searcher": {"name": "random", "configurations": 8}}
    (slow,) = still_rates(SweepSpec.model_validate(drawn), 2000, 2)
    assert slow.lr_omega == 1e-5
    fixed = {**SPACE, "algorithms": ["uniform", "uniform-d1"], "space": {"batch_size": [10, 50]}}
    assert still_rates(SweepSpec.model_validate(fixed), 2000, 2) == []
    partly = {**SPACE, "space": {"lr_omega": [1e-4], "batch_size": [10, 50]}}
    (some,) = still_rates(SweepSpec.model_validate(partly), 2000, 2)
    assert (some.configurations, some.of) == (2, 4)
    assert ", in 2 of 4 combinations: " in some.in_words()


def test_the_doctor_warns_of_them():
    facts = {"rows": 2000, "label_names": ["a", "b"]}
    found = doctor.omega(SweepSpec.model_validate(SPACE), facts)
    assert (found.status, found.detail.startswith("λ2 (lr_omega) 1e-05 × 100 updates")) == ("warning", True)
    fast = {**SPACE, "space": {"lr_omega": [1e-2]}}
    assert doctor.omega(SweepSpec.model_validate(fast), facts).status == "ok"
    assert doctor.omega(SweepSpec.model_validate(SPACE), None).status == "skipped"
    fixed = {**SPACE, "algorithms": ["uniform"], "space": {"batch_size": [10]}}
    assert doctor.omega(SweepSpec.model_validate(fixed), facts).status == "skipped"
