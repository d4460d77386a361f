"""The contract of every searcher, and what each adds to it."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leebert.methods import applies
from tune.searchers import SEARCHERS, Searcher, make_searcher
from tune.searchers.tpe import STARTUP, TpeSearcher
from tune.space import SearcherName, SweepSpec, config_id, effective
from tune.store.history import Cell, ConfigState, Configuration, EpochScore, History

LISTS = {"lr_theta": [1e-5, 2e-5, 5e-5], "cycle_length": [2, 4], "lr_omega": [1e-4, 1e-3], "teachers": ["lae", "lle"]}
RANGES = {
    "lr_theta": {"log_range": [1e-6, 1e-3]},
    "lr_omega": {"log_range": [1e-5, 1e-2]},
    "cycle_length": {"range": [1, 8]},
    "warmup": {"range": [0.0, 0.3], "step": 0.1},
    "batch_size": {"log_range": [8, 128]},
    "teachers": ["lae", "lle", "last"],
}


def spec_of(name: str, space: dict[str, Any], number: int | None = None, seed: int = 0, **keys: Any) -> SweepSpec:
    base = {"task": "mrpc", "backbone": "x", "folds": 2, "algorithms": ["clo-v2", "blo", "uniform"], "space": space}
    searcher = {"name": name, "configurations": None if name == "grid" else number, "seed": seed}
    return SweepSpec.model_validate(base | {"searcher": searcher} | keys)


def ran(values: dict[str, Any], score: float, state: ConfigState = "complete") -> Configuration:
    """A configuration whose two cells scored about so much."""
    cells = tuple(Cell(0, fold, "finished", (EpochScore(0, score + shift),)) for fold, shift in ((0, -0.01), (1, 0.01)))
    return Configuration(config_id(values), values, state, cells)


def quality(values: dict[str, Any]) -> float:
    """A made-up score: best at λ1 = 1e-4 under CLO-v2."""
    return 0.9 - 0.1 * abs(math.log10(values["lr_theta"]) + 4) - (0.05 if values["algorithm"] != "clo-v2" else 0)


def play(searcher: Searcher, rounds: int, history: History = ()) -> History:
    """The history after so many suggestions, each run to its end."""
    for _ in range(rounds):
        values = searcher.suggest(history)
        if values is None:
            break
        history = (*history, ran(values, quality(values)))
    return history


@pytest.fixture(params=sorted(SEARCHERS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_names_are_those_of_the_file() -> None:
    assert set(SEARCHERS) == set(get_args(SearcherName))


def test_every_configuration_of_a_finite_space_once(name: str) -> None:
    spec = spec_of(name, LISTS)
    history = play(make_searcher(spec), 100)
    assert len(history) == spec.size == 24 + 12 + 6
    assert {c.id for c in history} == {config_id(values) for values in spec.configurations()}


def test_suggestions_are_effective_and_in_the_space(name: str) -> None:
    spec = spec_of(name, LISTS)
    for configuration in play(make_searcher(spec), 30):
        values = dict(configuration.values)
        assert values == effective(values)
        assert set(values) == {"algorithm", *(o for o in LISTS if applies(o, values["algorithm"]))}
        assert all(values[option] in LISTS[option] for option in values if option != "algorithm")
        assert all(type(value) in (int, float, str) for value in values.values())  # plain, so that JSON takes them
        spec.train_config(values)


def test_same_history_same_suggestion(name: str) -> None:
    spec = spec_of(name, LISTS)
    history = play(make_searcher(spec), 15)
    for length in (0, 5, 11, 15):
        assert make_searcher(spec).suggest(history[:length]) == make_searcher(spec).suggest(history[:length])
        expected = history[length].values if length < 15 else None
        if expected is not None:
            assert make_searcher(spec).suggest(history[:length]) == expected  # as before the restart


def test_never_what_is_there_already_whatever_its_state(name: str) -> None:
    spec = spec_of(name, LISTS)
    history: History = ()
    for i in range(42):
        values = make_searcher(spec).suggest(history)
        assert values is not None
        assert config_id(values) not in {c.id for c in history}
        history = (*history, ran(values, quality(values), get_args(ConfigState)[i % 4]))
    assert make_searcher(spec).suggest(history) is None


@pytest.mark.parametrize("name", ["random", "tpe"])
@pytest.mark.parametrize("keys", [{"number": 13}, {"budget": {"trials": 13}}])
def test_drawing_searchers_stop_at_their_number(name: str, keys: dict[str, Any]) -> None:
    assert len(play(make_searcher(spec_of(name, RANGES, **keys)), 20)) == 13


@pytest.mark.parametrize("name", ["random", "tpe"])
def test_drawing_searchers_take_ranges(name: str) -> None:
    spec = spec_of(name, RANGES, 40)
    for configuration in play(make_searcher(spec), 40):
        values = configuration.values
        assert 1e-6 <= values["lr_theta"] <= 1e-3
        assert values["warmup"] in (0.0, 0.1, 0.2, 0.3)
        assert 8 <= values["batch_size"] <= 128
        spec.train_config(values)


@pytest.mark.parametrize("name", ["random", "tpe"])
def test_seed_changes_the_draws(name: str) -> None:
    first, second = (play(make_searcher(spec_of(name, RANGES, 12, seed)), 12) for seed in (0, 1))
    assert {c.id for c in first}.isdisjoint(c.id for c in second)


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


def test_tpe_tells_every_state() -> None:
    states: tuple[ConfigState, ...] = ("complete", "running", "pruned", "failed")
    trials = told(*(ran(VALUES, 0.5, state) for state in states))
    assert [trial.state.name for trial in trials] == ["COMPLETE", "RUNNING", "PRUNED", "FAIL"]
    assert trials[0].value == pytest.approx(0.5)
    assert all(trial.value is None or i == 0 for i, trial in enumerate(trials))


def test_tpe_tells_levels_in_rising_order() -> None:
    (trial,) = told(ran(VALUES, 0.5))
    assert trial.params == {"algorithm": "clo-v2", "lr_theta": 1, "cycle_length": 1, "lr_omega": 1, "teachers": "lle"}
    (blo,) = told(ran({"algorithm": "blo", "lr_theta": 5e-5, "lr_omega": 1e-4, "teachers": "lae"}, 0.5))
    assert blo.params == {"algorithm": "blo", "lr_theta": 2, "lr_omega": 0, "teachers": "lae"}


def test_tpe_tells_a_pruned_one_by_the_epochs_that_it_had() -> None:
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


def test_tpe_learns() -> None:
    """After its random start it proposes better configurations than random draws do."""
    means = {}
    for name in ("random", "tpe"):
        histories = [play(make_searcher(spec_of(name, RANGES, 30, seed)), 30) for seed in range(3)]
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
