"""θ's and ω's random numbers: methods that see the same batches see the same masks, and differ by ω alone.

Here ω never moves, so that methods with a D2 must train as uniform weights on D1 do, bit for bit. With Adam an update of
ω is about λ2 however large the gradient is, also the part of eq. 9 that is meant at λ1: at λ2 = 1e-15, 1 − λ2 is 1 in
float32. With SGD that part moves ω by λ1 whatever λ2 is, so only BLO and the hypergradient have that limit there.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
from typing import Any

import numpy as np
import pytest
import quick
import torch
from encoders import encoder
from pictures import CLASSES, pixels
from toys import ALGORITHMS, ThreeExitMLP, toy_mlp, toy_rows

from leebert.checkpoint import Checkpoints
from leebert.config import TrainConfig
from leebert.data.batches import plan_epoch
from leebert.images.resnet import build_resnet
from leebert.model import build_model
from leebert.objective import ExitObjective
from leebert.record import Record, TensorSamples
from leebert.runtime import RandomState, Runtime
from leebert.stages import Stage
from leebert.train import fit, train_epochs

CPU = Runtime.of("fp32", "cpu")
WITH_D2 = ("blo", "hyper", "hyper-v2", "clo-v1", "clo-v2")
CONTROL = "uniform-d1"


def config(algorithm: str, **options: Any) -> TrainConfig:
    settings = {
        "algorithm": algorithm, "lr_theta": 1e-2, "lr_omega": 1e-15, "batch_size": 8, "max_epochs": 2, "cycle_length": 2,
        "precision": "fp32", **options,
    }  # fmt: skip
    return TrainConfig(**settings)


def theta(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().cpu().clone() for p in model.parameters()]


def trained(model: Any, rows: Any, settings: TrainConfig, runtime: Runtime = CPU, **options: Any) -> list[torch.Tensor]:
    """θ after training, in which no weight has moved."""
    torch.manual_seed(4321)  # whatever was drawn before
    result = fit(model, rows, settings, runtime=runtime, **options)
    weights = result.reports[-1].weights
    assert weights == {"ce": [1.0] * model.num_exits, "kd": [model.num_exits - 1.0] * model.num_exits}
    return theta(model)


def assert_same(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@functools.cache
def controls(**options: Any) -> list[torch.Tensor]:
    """θ of the toy network after training with uniform weights on D1."""
    return trained(toy_mlp(dropout=0.3), toy_rows(48), config(CONTROL, **options))


@pytest.mark.parametrize(
    ("algorithm", "omega_forward", "accumulate"),
    quick.only(
        [("hyper-v2", "train", 1), ("clo-v2", "eval", 2)],
        [(algorithm, *how) for algorithm in WITH_D2 for how in (("train", 1), ("eval", 2))],
    ),
)
def test_without_a_step_of_omega_theta_is_that_of_uniform_weights_on_d1(algorithm, omega_forward, accumulate, tmp_path):
    settings = config(algorithm, omega_forward=omega_forward, accumulate=accumulate)
    start = theta(toy_mlp(dropout=0.3))
    expected = controls(accumulate=accumulate)
    assert not any(torch.equal(a, b) for a, b in zip(expected, start, strict=True))
    assert_same(trained(toy_mlp(dropout=0.3), toy_rows(48), settings), expected)

    torn = train_epochs(toy_mlp(dropout=0.3), toy_rows(48), settings, runtime=CPU, checkpoints=Checkpoints(tmp_path))
    next(torn)
    torn.close()
    resumed = trained(toy_mlp(seed=9, dropout=0.3), toy_rows(48), settings, checkpoints=Checkpoints(tmp_path))
    assert_same(resumed, expected)


@pytest.mark.parametrize("algorithm", ["blo", "hyper"])
def test_the_same_where_omega_descends_by_sgd(algorithm):
    settings = config(algorithm, omega_optimizer="sgd", parametrisation="raw")
    assert_same(trained(toy_mlp(dropout=0.3), toy_rows(48), settings), controls(accumulate=1))


@pytest.mark.parametrize("algorithm", WITH_D2)
def test_the_same_behind_a_stage_that_fine_tunes(algorithm):
    first = {"finetune_first": True, "first_epochs": 1}
    assert_same(trained(toy_mlp(dropout=0.3), toy_rows(48), config(algorithm, **first)), controls(**first))


def test_a_seed_and_a_fold_have_masks_of_their_own():
    runs = [trained(toy_mlp(dropout=0.3), toy_rows(), config("blo"), seed=seed) for seed in ((0, 0), (0, 1), (1, 0))]
    for one, other in itertools.combinations(runs, 2):
        assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def token_rows(n: int = 48, length: int = 9) -> TensorSamples:
    g = torch.Generator().manual_seed(3)
    mask = (torch.arange(length) < torch.randint(3, length + 1, (n, 1), generator=g)).long()
    ids = torch.randint(5, 60, (n, length), generator=g) * mask
    return TensorSamples(input_ids=ids, attention_mask=mask, labels=(ids[:, 1] > 30).long())


def assert_trained_alike(model: torch.nn.Module, rows: TensorSamples, **options: Any) -> None:
    """Every method with a D2 leaves the θ that the control leaves."""
    expected = trained(copy.deepcopy(model), rows, config(CONTROL, **options))
    for algorithm in WITH_D2:
        found = trained(copy.deepcopy(model), rows, config(algorithm, **options))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), algorithm


@pytest.mark.slow
def test_an_encoder_with_dropout_in_its_attention_and_its_exits_too():
    model = build_model(encoder("bert", layers=2), ("no", "yes"), train=config(CONTROL))
    assert_trained_alike(model, token_rows(), lr_theta=1e-3)


def test_images_that_are_augmented_in_a_forward_too():
    images, labels = pixels(48, 8, 0)
    rows = TensorSamples(images=torch.from_numpy(images), labels=torch.from_numpy(labels))
    torch.manual_seed(0)
    names = tuple(f"class {i}" for i in range(CLASSES))
    model = build_resnet("resnet8", names, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), train=config(CONTROL))
    assert_trained_alike(model, rows, theta_optimizer="sgd", max_epochs=1)


class Noisy(TensorSamples):
    """Rows that are augmented where they are collated, by torch's random numbers."""

    def collate(self, indices: object) -> dict[str, torch.Tensor]:
        batch = super().collate(indices)
        return {**batch, "features": batch["features"] + 0.1 * torch.randn_like(batch["features"])}


def test_rows_that_are_augmented_where_they_are_collated_too():
    assert_trained_alike(toy_mlp(dropout=0.3), Noisy(**toy_rows().columns))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("algorithm", WITH_D2)
def test_the_generator_of_a_gpu_too(algorithm):
    runtime = Runtime.of("fp32", "cuda")
    one, other = (trained(toy_mlp(dropout=0.3), toy_rows(), config(a), runtime) for a in (algorithm, CONTROL))
    assert_same(one, other)


class Drawing(ThreeExitMLP):
    """Notes for each forward in training whether θ's gradient follows, its rows' first feature, and a random number."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.forwards: list[tuple[float, float]] = []

    def record(self, batch: Any, keep: Any = "logits") -> Record:
        if self.training:
            self.forwards.append((float(batch["features"][0, 0]), float(torch.rand(1, dtype=torch.float64))))
        return super().record(batch, keep)


def drawn(algorithm: str, seed: tuple[int, ...] = (0,), **options: Any) -> list[tuple[float, float]]:
    """(a row, a random number) of each forward in training."""
    torch.manual_seed(0)
    model = Drawing()
    fit(model, toy_rows(), config(algorithm, **options), runtime=CPU, seed=seed)
    return model.forwards


def test_every_forward_for_omega_has_a_mask_of_its_own_that_only_seed_fold_epoch_and_step_decide():
    runs = {seed: drawn("clo-v1", seed, accumulate=2) for seed in ((0, 0), (0, 1), (1, 0))}
    numbers = [number for run in runs.values() for _, number in run]
    assert len(set(numbers)) == len(numbers) == 3 * 2 * 6 * 3 * 2  # runs, epochs, updates, forwards, parts
    assert drawn("clo-v1", (0, 1), accumulate=2) == runs[0, 1]


def test_b2_has_the_same_masks_under_every_method_that_looks_at_it_in_the_same_step():
    blo, hyper, clo = drawn("blo"), drawn("hyper"), drawn("clo-v1")
    assert clo[0::3] == blo[0::2] == drawn("uniform-d1"), "θ's"
    assert clo[1::3] == blo[1::2], "ω's on B2"
    assert [hyper[i + 1] for i in range(0, len(hyper), 4)] == blo[1::2]
    assert [hyper[i + 2] for i in range(0, len(hyper), 4)] == hyper[0::4], "the look-ahead has the masks of the step"


def test_uniform_weights_on_d1_see_d1s_batches_and_uniform_weights_those_of_all_rows():
    d1 = {
        name: [row for row, _ in drawn(name)][:: 2 if name == "blo" else 1] for name in ("uniform-d1", "blo", "uniform")
    }
    assert d1["uniform-d1"] == d1["blo"] != d1["uniform"]
    plans = [
        plan_epoch(np.ones(96), 8, ALGORITHMS[n](config(n)).splits_data, (0, "joint"), 0) for n in (CONTROL, "clo-v2")
    ]
    assert np.array_equal(plans[0].d1, plans[1].d1)


def test_a_stream_of_its_own_leaves_torchs_numbers_as_they_were_even_after_an_error():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    state = RandomState.seeded(torch.device("cpu"), 0, "omega", 1)
    first = []
    for _ in range(2):
        with contextlib.suppress(KeyError), state.replayed():
            first.append(float(torch.rand(1)))
            raise KeyError
    assert first[0] == first[1]
    assert torch.equal(torch.rand(3), expected)
    with RandomState.seeded(torch.device("cpu"), 0, "omega", 2).replayed():
        assert float(torch.rand(1)) != first[0]


def test_nothing_that_an_algorithm_asks_for_omega_draws_from_thetas_numbers():
    states = []

    @dataclasses.dataclass(frozen=True)
    class Watching:
        splits_data: bool = True

        def step(self, level: Any, b1: Any, position: int) -> int:
            before = torch.get_rng_state()
            level.losses(b1, level.next_d2())
            level.gradient(b1)
            states.append(torch.equal(before, torch.get_rng_state()))
            level.theta_step(b1)
            return 0

    settings = config("blo", max_epochs=1)
    stage = Stage("joint", ExitObjective.of(settings, 3), Watching())
    fit(toy_mlp(dropout=0.3), toy_rows(), settings, stages=(stage,), runtime=CPU)
    assert states == [True] * 6
