"""Problems whose right loss weights are known: where each optimiser of ω moves them, the paper's wrong ways included."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from leebert.config import TrainConfig
from leebert.data.synthetic.known_weights import PROBLEMS, KnownWeights
from leebert.losses import lae
from leebert.objective import ExitObjective
from leebert.stages import of_exit
from leebert.testing.known_weights import Outcome, trained
from leebert.weights import Terms

ROOT = Path(__file__).resolve().parent.parent
LEARNED = (
    "slo", "clo-v2",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("blo", "clo-v1", "hyper")),
)  # fmt: skip
#: Fewer updates than in benchmarks/weights.py, at a rate at which ω moves as far as it wants.
SHORT = {"max_epochs": 8, "lr_omega": 0.1}


@functools.cache
def short(
    problem: str, algorithm: str = "uniform-d1", seed: int = 0, fixed: float | None = None, **options: Any
) -> Outcome:
    """Train a method on a problem for eight epochs."""
    return trained(PROBLEMS[problem], algorithm, {**SHORT, **options}, seed, fixed)


@pytest.mark.parametrize("algorithm", LEARNED)
def test_the_papers_optimisers_give_a_constant_teacher_nearly_the_whole_weight(algorithm: str) -> None:
    """∂L/∂w is the vector of losses, and nothing is as easy to learn as a constant."""
    uniform, learned = short("constant"), short("constant", algorithm)
    assert learned.marked_weight > 2
    assert learned.weights[-1, :3].max() < 0.2, "cross-entropies lose their weight"
    assert learned.score < uniform.score - 0.15


@pytest.mark.parametrize("algorithm", ["slo", "clo-v2"])
def test_they_leave_a_random_teacher_because_its_loss_is_large(algorithm: str) -> None:
    assert short("random", algorithm).marked_weight < 0.3


@pytest.mark.parametrize("algorithm", LEARNED)
def test_they_follow_a_perfect_teacher_because_its_loss_is_small(algorithm: str) -> None:
    learned = short("perfect", algorithm)
    assert learned.marked_weight > 1.3
    assert learned.weights[-1, :3].max() < 0.2


@pytest.mark.parametrize(
    "problem",
    [
        "constant",
        *(pytest.param(p, marks=pytest.mark.slow) for p in ("random", "outdated", "noisy_labels", "harmful_exit")),
    ],
)
def test_a_held_out_loss_without_weights_takes_weight_from_bad_terms_and_does_no_harm(problem: str) -> None:
    learned = short(problem, "hyper-v2", cycle_length=1)
    assert learned.marked_weight < 0.8
    assert learned.score > short(problem).score - 0.02


@pytest.mark.slow
def test_a_held_out_loss_without_weights_follows_a_perfect_teacher() -> None:
    assert short("perfect", "hyper-v2", cycle_length=1).marked_weight > 1.5


def test_the_outer_objective_decides_not_the_hypergradient() -> None:
    """The same step on L with its weights goes where the paper's optimisers go."""
    assert short("constant", "hyper-v2", cycle_length=1, outer="weighted").marked_weight > 2


def test_uncertainty_weighting_follows_the_size_of_a_loss_too() -> None:
    learned = short("constant", "uncertainty", parametrisation="softplus")
    assert learned.marked_weight > 2
    assert learned.score < short("constant").score - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["outdated", "noisy_labels"])
def test_without_bad_terms_the_exits_score_higher(problem: str) -> None:
    gains = [short(problem, seed=s, fixed=0.0).score - short(problem, seed=s).score for s in (0, 1)]
    assert np.mean(gains) > 0.01


@pytest.mark.slow
def test_a_perfect_teacher_helps() -> None:
    gains = [short("perfect", seed=s, fixed=64.0).score - short("perfect", seed=s).score for s in (0, 1)]
    assert np.mean(gains) > 0.01


@pytest.mark.slow
def test_fixed_weights_of_1_are_uniform_weights_on_the_same_batches() -> None:
    fixed, uniform = short("noisy_labels", fixed=1.0), short("noisy_labels")
    assert np.array_equal(fixed.scores, uniform.scores)
    assert (uniform.weights == 1).all()
    assert uniform.marked_weight == pytest.approx(1)


def terms_of(problem: KnownWeights) -> Terms:
    return Terms.of(lae(problem.num_exits))


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_a_problem_is_the_same_for_the_same_seed(problem: KnownWeights) -> None:
    one, again, other = problem.samples(0), problem.samples(0), problem.samples(1)
    assert all(torch.equal(one.columns[name], again.columns[name]) for name in one.columns)
    assert not torch.equal(one.columns["features"], other.columns["features"])
    test = problem.samples(0, "test")
    assert len(one) == problem.train < len(test) == problem.test
    record = problem.model(0).record(test.collate(range(5)))
    assert record.logits.shape == (problem.num_exits, 5, problem.classes)
    planted = problem.num_exits - 1 if problem.planted else None
    assert {of_exit(name) for name, _ in problem.model(0).named_parameters()} - {None} == (
        set(range(problem.num_exits)) - {planted}
    )


def marked_pairs(problem: KnownWeights) -> set[Any]:
    """The marked terms: (student,) of a cross-entropy, (student, teacher) of a distillation term."""
    terms = terms_of(problem)
    students, teachers = terms.pairs
    names = [(m,) for m in range(terms.num_exits)] + list(zip(students.tolist(), teachers.tolist(), strict=True))
    return {name for name, marked in zip(names, problem.marked(terms).tolist(), strict=True) if marked}


def test_marked_are_the_terms_that_the_planted_and_the_noisy_exits_are_in() -> None:
    assert marked_pairs(PROBLEMS["constant"]) == {(0, 3), (1, 3), (2, 3)}
    every = {(m,) for m in range(4)} | {(m, t) for m in range(4) for t in range(4) if m != t}
    assert marked_pairs(PROBLEMS["noisy_labels"]) == {term for term in every if {0, 1} & set(term)}
    assert marked_pairs(PROBLEMS["harmful_exit"]) == {term for term in every if 0 in term}
    assert PROBLEMS["noisy_labels"].scored == (2, 3)


def test_a_noisy_exits_loss_is_that_of_wrong_labels_and_only_in_training() -> None:
    problem = PROBLEMS["noisy_labels"]
    model = problem.model(0).eval()
    batch = problem.samples(0).collate(range(problem.train))
    clean = {name: column for name, column in batch.items() if name != "order"}
    noisy, right = model.record(batch).logits, model.record(clean).logits
    assert torch.equal(noisy[2:], right[2:])
    labels = batch["order"].gather(2, batch["labels"][:, None, None].expand(-1, 2, 1))[..., 0]  # (n, 2)
    assert 0.6 < (labels != batch["labels"][:, None]).float().mean() < 0.9
    for exit_ in (0, 1):
        expected = torch.nn.functional.cross_entropy(right[exit_], labels[:, exit_]).item()
        assert torch.nn.functional.cross_entropy(noisy[exit_], batch["labels"]).item() == pytest.approx(expected)
    assert "order" not in problem.samples(0, "test").columns


def test_teachers_know_what_they_claim() -> None:
    def accuracy(name: str) -> float:
        columns = PROBLEMS[name].samples(0).columns
        return float((columns["planted"].argmax(dim=1) == columns["labels"]).float().mean())

    assert accuracy("perfect") > 0.7
    assert accuracy("random") < 0.4
    assert 0.25 < accuracy("outdated") < 0.6
    assert 0.5 < accuracy("imbalance") < 0.85
    constant = PROBLEMS["constant"].samples(0).columns["planted"]
    assert (constant == constant[0]).all()


def test_planted_logits_are_constants_of_the_loss() -> None:
    """The planted exit's own terms have no gradient, those that it teaches have one."""
    problem = PROBLEMS["perfect"]
    config = TrainConfig.model_validate({**problem.training(), "algorithm": "uniform-d1"})
    objective = ExitObjective.of(config, problem.num_exits)
    model = problem.model(0)
    terms = objective.terms(model.record(problem.samples(0).collate(range(8))), objective.initial(torch.Generator()))
    layout = terms_of(problem)
    head = list(model.heads[0].parameters())
    for term in problem.marked(layout).nonzero()[:1, 0]:
        (gradient, _) = torch.autograd.grad(terms[term], head, retain_graph=True)
        assert gradient.abs().max() > 0
    (own,) = torch.autograd.grad(terms[problem.num_exits - 1] + 0 * head[0].sum(), head[:1], retain_graph=True)
    assert own.abs().max() == 0


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """benchmarks/weights.py, imported as the script beside it does."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("weights")
    for name in ("weights", "common"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_the_pages_tables_are_those_of_the_kept_runs(benchmark: ModuleType) -> None:
    """`python docs/results/weights.py` writes them."""
    path = ROOT / "docs" / "results" / "weights.py"
    spec = importlib.util.spec_from_file_location("weights_page", path)
    assert spec is not None
    assert spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert page.RUNS.stat().st_size < 1e6
    text = page.PAGE.read_text()
    assert page.rendered(text, benchmark.Rows(page.RUNS)) == text


def test_an_interrupted_benchmark_resumes_from_its_rows(benchmark: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "runs.parquet"
    rows = benchmark.Rows(file)
    planned = list(benchmark.planned(rows, ["constant"], 1, [benchmark.parsed("rand max_epochs=1")]))
    assert len(planned) == len(set(planned))
    extra = benchmark.Run("constant", "rand", '{"max_epochs": 1}')
    fixed = benchmark.Run("constant", "uniform-d1", '{"max_epochs": 1}', 0.5, 3)
    assert extra in planned
    for run in (extra, fixed):
        rows.add(run)
    again = benchmark.Rows(file)
    assert again.runs == {extra, fixed}
    assert again.scores("constant", "uniform-d1", '{"max_epochs": 1}', 0.5).keys() == {3}
    assert [row["fixed"] for row in again.of("constant", "rand", '{"max_epochs": 1}')] == [None]


def test_a_run_is_read_from_the_command_line(benchmark: ModuleType) -> None:
    parsed = benchmark.parsed
    assert parsed("hyper outer=ce lr_omega=0.1") == ("hyper", '{"lr_omega": 0.1, "outer": "ce"}')
    with pytest.raises(argparse.ArgumentTypeError, match="'0.1': write options as key=value"):
        parsed("hyper 0.1")
