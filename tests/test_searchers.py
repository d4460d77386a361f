"""The contract of every searcher, and what each adds to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune.searchers import SEARCHERS, Searcher, make_searcher
from tune.searchers.tpe import STARTUP, TpeSearcher
from tune.space import SweepSpec, config_id
from tune.store.history import Cell, ConfigState, Configuration, EpochScore, History
from tune.testing import LISTS, RANGES, SearcherContract, play, quality, ran


def spec_of(name: str, space: Mapping[str, Any], number: int | None = None, seed: int = 0, **keys: Any) -> SweepSpec:
    base = {
        "task": "mrpc",
        "backbone": "x",
        "folds": 2,
        "algorithms": ["clo-v2", "blo", "uniform"],
        "space": dict(space),
    }
    searcher = {"name": name, "configurations": None if name == "grid" else number, "seed": seed}
    return SweepSpec.model_validate(base | {"searcher": searcher} | keys)


class TestGrid(SearcherContract):
    searcher = SEARCHERS["grid"]


class TestRandom(SearcherContract):
    searcher = SEARCHERS["random"]


class TestTpe(SearcherContract):
    searcher = SEARCHERS["tpe"]

    @pytest.mark.slow  # its model is fitted anew for each suggestion
    def test_finite_space_ends_after_each_configuration_once(self) -> None:
        super().test_finite_space_ends_after_each_configuration_once()


def test_every_searcher_of_ours_has_its_contract_here() -> None:
    contracts = {cls.searcher.name for cls in SearcherContract.__subclasses__()}
    missing = {*SEARCHERS.built_in} - contracts
    assert not missing, f"add a class with SearcherContract to this file for each of {missing}"


@pytest.mark.parametrize("name", ["random", "tpe"])
def test_drawing_searchers_stop_at_the_budget(name: str) -> None:
    assert len(play(make_searcher(spec_of(name, RANGES, budget={"trials": 13})), 20)) == 13


@settings(max_examples=20)
@given(order=st.permutations(range(8)))
def test_grid_and_random_dont_mind_the_order(order: list[int]) -> None:
    for name in ("grid", "random"):
        searcher = make_searcher(spec_of(name, LISTS))
        history = play(searcher, 8)
        assert searcher.suggest(tuple(history[i] for i in order)) == searcher.suggest(history)


def test_more_random_configurations_continue_the_sequence() -> None:
    few, many = (play(make_searcher(spec_of("random", RANGES, number)), 99) for number in (6, 15))
    assert many[:6] == few


def test_random_draws_are_paired_over_algorithms() -> None:
    history = play(make_searcher(spec_of("random", RANGES, 12)), 12)
    for i in range(0, 12, 3):
        clo, blo, uniform = (c.values for c in history[i : i + 3])
        assert (clo["algorithm"], blo["algorithm"], uniform["algorithm"]) == ("clo-v2", "blo", "uniform")
        assert clo["lr_theta"] == blo["lr_theta"] == uniform["lr_theta"]
        assert clo["lr_omega"] == blo["lr_omega"]


@settings(max_examples=20)
@given(
    sizes=st.lists(st.integers(1, 99), min_size=1, max_size=5, unique=True),
    cycles=st.lists(st.integers(1, 9), min_size=1, max_size=5, unique=True),
    seed=st.integers(0, 1000),
)
def test_random_exhausts_any_finite_space(sizes: list[int], cycles: list[int], seed: int) -> None:
    spec = spec_of("random", {"batch_size": sizes, "cycle_length": cycles}, seed=seed)
    values = [c.values for c in play_scoreless(make_searcher(spec))]
    assert len(values) == spec.size == len(sizes) * (len(cycles) + 2)


def play_scoreless(searcher: Searcher) -> History:
    history: History = ()
    while (values := searcher.suggest(history)) is not None:
        history = (*history, Configuration(config_id(values), values))
    return history


def test_a_stepped_range_is_finite() -> None:
    spec = spec_of("random", {"warmup": {"range": [0, 0.2], "step": 0.1}}, 99, algorithms=["blo"])
    assert spec.size == 3
    assert len(play_scoreless(make_searcher(spec))) == 3
    assert spec_of("random", RANGES, 1).size is None


# TPE, as Optuna is told.


def told(*history: Configuration) -> list[Any]:
    searcher = TpeSearcher(spec_of("tpe", LISTS, 99))
    return searcher.study(history).trials


VALUES = {"algorithm": "clo-v2", "lr_theta": 2e-5, "cycle_length": 4, "lr_omega": 1e-3, "teachers": "lle"}


def test_tpe_passes_every_state() -> None:
    states: tuple[ConfigState, ...] = ("complete", "running", "pruned", "failed")
    trials = told(*(ran(VALUES, 0.5, state) for state in states))
    assert [trial.state.name for trial in trials] == ["COMPLETE", "RUNNING", "PRUNED", "FAIL"]
    assert trials[0].value == pytest.approx(0.5)
    assert all(trial.value is None or i == 0 for i, trial in enumerate(trials))


def test_tpe_passes_levels_in_rising_order() -> None:
    (trial,) = told(ran(VALUES, 0.5))
    assert trial.params == {"algorithm": "clo-v2", "lr_theta": 1, "cycle_length": 1, "lr_omega": 1, "teachers": "lle"}
    (blo,) = told(ran({"algorithm": "blo", "lr_theta": 5e-5, "lr_omega": 1e-4, "teachers": "lae"}, 0.5))
    assert blo.params == {"algorithm": "blo", "lr_theta": 2, "lr_omega": 0, "teachers": "lae"}


def test_tpe_passes_a_pruned_one_by_the_epochs_that_it_had() -> None:
    cells = (
        Cell(0, 0, "finished", (EpochScore(0, 0.4), EpochScore(1, 0.6), EpochScore(2, 0.5))),
        Cell(0, 1, "running", (EpochScore(0, 0.8),)),
    )
    (trial,) = told(Configuration("id", VALUES, "pruned", cells))
    assert trial.intermediate_values == pytest.approx({1: 0.4, 2: 0.6, 3: 0.6, 11: 0.7})


def test_tpe_ranks_a_diverged_one_last() -> None:
    diverged = Configuration("id", VALUES, "failed", (Cell(0, 0, "diverged", (EpochScore(0, 0.9),)),))
    (trial,) = told(diverged)
    assert (trial.state.name, trial.intermediate_values) == ("PRUNED", {})


@pytest.mark.slow
def test_tpe_learns() -> None:
    """After its random start it proposes better configurations than random draws do."""
    means = {}
    for name in ("random", "tpe"):
        histories = [play(make_searcher(spec_of(name, RANGES, 26, seed)), 26) for seed in range(2)]
        later = [quality(dict(c.values)) for history in histories for c in history[STARTUP + 5 :]]
        means[name] = sum(later) / len(later)
    assert means["tpe"] > means["random"] + 0.03


def test_tpe_proposes_several_at_once() -> None:
    spec = spec_of("tpe", RANGES, 99)
    searcher = make_searcher(spec)
    history = play(searcher, 15)
    proposals = []
    for _ in range(4):
        values = searcher.suggest(history)
        assert values is not None
        proposals.append(values)
        history = (*history, Configuration(config_id(values), values))
    assert len({config_id(values) for values in proposals}) == 4
