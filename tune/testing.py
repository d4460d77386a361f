"""Tests that every searcher and pruner must pass, as classes that other packages import.

A subclass names the plugin under test, and pytest collects it::

    class TestMedian(PrunerContract):
        pruner = MEDIAN
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import math
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any, ClassVar, get_args

import pytest

from leebert.methods import applies
from leebert.plugins import Registry
from leebert.testing.rows import registered
from tune.pruners import PRUNERS, Pruner, PrunerPlugin, make_pruner
from tune.searchers import SEARCHERS, Searcher, SearcherPlugin, make_searcher
from tune.space import SweepSpec, config_id, effective
from tune.space.plugins import SweepPlugin
from tune.store.history import Cell, CellState, ConfigState, Configuration, EpochScore, History

_FOLDS, _EPOCHS = 3, 3

#: Of which the first two learn ω, and only the first has cycles.
_METHODS = ("clo-v2", "blo", "uniform")

#: A finite space of 42 configurations, and one of ranges.
LISTS: Mapping[str, Any] = {
    "lr_theta": [1e-5, 2e-5, 5e-5],
    "cycle_length": [2, 4],
    "lr_omega": [1e-4, 1e-3],
    "teachers": ["lae", "lle"],
}
RANGES: Mapping[str, Any] = {
    "lr_theta": {"log_range": [1e-6, 1e-3]},
    "lr_omega": {"log_range": [1e-5, 1e-2]},
    "cycle_length": {"range": [1, 8]},
    "warmup": {"range": [0.0, 0.3], "step": 0.1},
    "batch_size": {"log_range": [8, 128]},
    "teachers": ["lae", "lle", "last"],
}

_HEAVY = {"torch", "ray", "mlflow", "optuna", "transformers", "pandas", "sklearn"}


def _check_plugin(plugin: SweepPlugin, registry: Registry[Any]) -> None:
    """Assert that a plugin is valid, has the texts of tables, and that its module imports nothing heavy."""
    assert registry[plugin.name] is plugin
    registry.check(plugin)
    assert plugin.title
    assert plugin.source
    assert all(field.description for field in plugin.options.model_fields.values())
    tree = ast.parse(inspect.getsource(importlib.import_module(plugin.make.__module__)))
    for node in tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        heavy = {name.split(".")[0] for name in names} & _HEAVY
        assert not heavy, f"{plugin.make.__module__}: import {', '.join(heavy)} inside the function that uses it"


def configuration(
    name: str, scores: list[list[float]], last: CellState = "running", state: ConfigState = "running"
) -> Configuration:
    """Make a configuration that has reported scores.

    Args:
        name: Its id.
        scores: The epochs' scores of each cell; cells are (0, 0), (0, 1), …
        last: State of its last cell; those before have finished.
        state: The configuration's.

    Returns:
        The configuration, as a history has it.
    """
    cells = tuple(
        Cell(
            0, fold, last if fold == len(scores) - 1 else "finished", tuple(EpochScore(e, s) for e, s in enumerate(row))
        )
        for fold, row in enumerate(scores)
    )
    return Configuration(name, {"algorithm": "clo-v2"}, state, cells)


def histories(number: int = 40) -> Iterator[History]:
    """Draw histories of running, completed, pruned and failed configurations; scores are on a grid, so that they tie.

    Some running configurations have no run yet, others a run without a report.
    """
    for seed in range(number):
        rng = Random(f"history/{seed}")

        def cells(count: int, shortest: int, rng: Random = rng) -> list[list[float]]:
            return [[rng.randrange(9) / 8 for _ in range(rng.randint(shortest, _EPOCHS))] for _ in range(count)]

        drawn = [
            configuration(f"r{i}", cells(rng.randint(1, _FOLDS), 1), rng.choice(("running", "finished")))
            for i in range(rng.randint(1, 6))
        ]
        drawn += [
            configuration(f"c{i}", cells(_FOLDS, _EPOCHS), "finished", "complete") for i in range(rng.randint(0, 6))
        ]
        drawn += [configuration(f"p{i}", cells(1, 1), "running", "pruned") for i in range(rng.randint(0, 2))]
        drawn += [configuration(f"f{i}", cells(1, 1), "diverged", "failed") for i in range(rng.randint(0, 2))]
        drawn += [configuration(f"w{i}", [[]] * i) for i in range(rng.randint(0, 2))]
        yield tuple(rng.sample(drawn, len(drawn)))


def _decisions(history: History) -> list[tuple[str, tuple[int, int], int]]:
    """List the queries of a pruner in a history: each running configuration with the cell and epoch of its last report."""
    last = [(c.id, c.cells[-1]) for c in history if _reported(c)]
    return [(name, (cell.seed, cell.fold), cell.epochs[-1].epoch) for name, cell in last]


def _reported(c: Configuration) -> bool:
    """Return whether a configuration runs and its last run has reported an epoch."""
    return c.state == "running" and bool(c.cells) and bool(c.cells[-1].epochs)


class PrunerContract:
    """Tests that a pruner passes; a subclass sets `pruner`, and pytest collects it.

    Attributes:
        pruner: The pruner under test.
        options: Options to test it with, beside their defaults.
    """

    pruner: ClassVar[PrunerPlugin]
    options: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def _registered(self) -> Iterator[None]:
        """Register the pruner for each test, also if its package is not installed."""
        with registered(PRUNERS, self.pruner):
            yield

    def spec(self, **options: Any) -> SweepSpec:
        """Make a space of three folds and three epochs with the pruner."""
        return SweepSpec.model_validate(
            {
                "task": "mrpc",
                "backbone": "x",
                "space": {"lr_theta": [1e-5, 2e-5]},
                "training": {"max_epochs": _EPOCHS},
                "folds": _FOLDS,
                "pruner": {"name": self.pruner.name, **self.options, **options},
            }
        )

    def made(self, **options: Any) -> Pruner:
        """Make the pruner."""
        return make_pruner(self.spec(**options))

    def test_row_is_complete(self) -> None:
        """The plugin is valid, has the texts of tables, and its module imports quickly."""
        self.spec()
        _check_plugin(self.pruner, PRUNERS)

    def test_decisions_depend_on_the_history_alone(self) -> None:
        """A pruner that has decided before and a new one make the same decisions."""
        used = self.made()
        for history in histories():
            for query in _decisions(history):
                decision = self.made().decide(history, *query)
                assert used.decide(history, *query) is decision
                assert isinstance(decision, bool)

    def test_order_of_the_history_does_not_matter(self) -> None:
        """The order of configurations does not matter."""
        pruner = self.made()
        for history in histories():
            for query in _decisions(history):
                assert pruner.decide(history, *query) == pruner.decide(history[::-1], *query)

    def test_only_configuration_is_never_stopped(self) -> None:
        """A configuration without others to compare it with is never pruned."""
        pruner = self.made()
        for history in histories():
            for one in filter(_reported, history):
                assert pruner.decide((one,), *_decisions((one,))[0])

    def test_best_is_never_stopped(self) -> None:
        """The best of several configurations, after the same first cell, is not pruned."""
        pruner = self.made()
        for history in histories():
            begun = tuple(_first_cell(c) for c in history if c.state == "complete")
            best = max((c.cells[0].epochs[0].score for c in begun), default=0.0)
            for query, c in zip(_decisions(begun), begun, strict=True):
                assert pruner.decide(begun, *query) or c.cells[0].epochs[0].score < best

    def test_nothing_stops_before_min_epochs(self) -> None:
        """`min_epochs`, if it is an option, is a number of epochs over all runs of a configuration."""
        if "min_epochs" not in self.pruner.options.model_fields:
            return
        for least in range(1, _FOLDS * _EPOCHS):
            pruner = self.made(min_epochs=least)
            for history in histories(10):
                for name, (seed, fold), epoch in _decisions(history):
                    running = next(c for c in history if c.id == name).cells[-1].state == "running"
                    if running and fold * _EPOCHS + epoch + 1 < least:
                        assert pruner.decide(history, name, (seed, fold), epoch)


def _first_cell(c: Configuration) -> Configuration:
    """Reduce a configuration to one cell with its best score at every epoch, so that it ranks the same at each epoch."""
    score = max(report.score for report in c.cells[0].epochs)
    return configuration(c.id, [[score] * _EPOCHS])


class SearcherContract:
    """Tests that a searcher passes; a subclass sets `searcher`, and pytest collects it.

    Attributes:
        searcher: The searcher under test.
        options: Options to test it with, beside their defaults.
    """

    searcher: ClassVar[SearcherPlugin]
    options: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def _registered(self) -> Iterator[None]:
        """Register the searcher for each test, also if its package is not installed."""
        with registered(SEARCHERS, self.searcher):
            yield

    def spec(self, space: Mapping[str, Any], **options: Any) -> SweepSpec:
        """Make a space of three methods with the searcher.

        Args:
            space: Option → values, as in a search space.
            **options: Options of the searcher.

        Returns:
            The validated space.
        """
        return SweepSpec.model_validate(
            {
                "task": "mrpc",
                "backbone": "x",
                "folds": 2,
                "algorithms": list(_METHODS),
                "space": dict(space),
                "searcher": {"name": self.searcher.name, **self.options, **options},
            }
        )

    def made(self, space: Mapping[str, Any], **options: Any) -> Searcher:
        """Make the searcher of a space.

        Args:
            space: Option → values, as in a search space.
            **options: Options of the searcher.

        Returns:
            A new searcher.
        """
        return make_searcher(self.spec(space, **options))

    def has(self, option: str) -> bool:
        """Return whether the searcher has an option."""
        return option in self.searcher.options.model_fields

    def test_row_is_complete(self) -> None:
        """The plugin is valid, has the texts of tables, and its module imports quickly."""
        self.spec(LISTS)
        _check_plugin(self.searcher, SEARCHERS)

    def test_finite_space_ends_after_each_configuration_once(self) -> None:
        """Each configuration of a finite space is suggested once, whatever the states of earlier ones; then None is."""
        spec = self.spec(LISTS)
        searcher, states = make_searcher(spec), get_args(ConfigState)
        history: History = ()
        while len(history) < 99 and (values := searcher.suggest(history)) is not None:
            assert config_id(values) not in {c.id for c in history}
            state = states[len(history) % len(states)]
            begun = ran(values, quality(values), state)
            # A configuration that runs may have no run yet, or a run without a report.
            waiting = (begun, dataclasses.replace(begun, cells=()), _without_reports(begun))
            history = (*history, waiting[len(history) % 3] if state == "running" else begun)
        assert {c.id for c in history} == {config_id(values) for values in spec.configurations()}

    def test_proposals_are_configurations_of_the_space(self) -> None:
        """Suggestions have exactly the options that their method uses, with values of the space as plain Python values."""
        spec = self.spec(LISTS)
        for proposed in play(make_searcher(spec), 18):
            values = dict(proposed.values)
            assert values == effective(values)
            assert set(values) == {"algorithm", *(o for o in LISTS if applies(o, values["algorithm"]))}
            assert all(values[option] in LISTS[option] for option in values if option != "algorithm")
            assert all(type(value) in (int, float, str, bool) for value in values.values())
            spec.train_config(values)

    def test_proposals_depend_on_the_history_alone(self) -> None:
        """A searcher made after a restart continues as the first one did."""
        history = play(self.made(LISTS), 15)
        for length in (0, 5, 11, 14):
            assert self.made(LISTS).suggest(history[:length]) == history[length].values

    def test_scores_are_read_only_where_the_row_declares_it(self) -> None:
        """Without `reads_scores`, the suggestions do not depend on scores."""
        if self.searcher.reads_scores:
            return
        history: History = ()
        for c in play(self.made(LISTS), 15):
            assert self.made(LISTS).suggest(history) == c.values
            history = (*history, ran(dict(c.values), 0.5))

    def test_drawing_searchers_take_ranges_and_stop_at_their_number(self) -> None:
        """A searcher with the option `configurations` draws that many from ranges, all within them."""
        if self.searcher.lists or not self.has("configurations"):
            return
        spec = self.spec(RANGES, configurations=13)
        history = play(make_searcher(spec), 20)
        assert len({c.id for c in history}) == len(history) == 13
        for c in history:
            assert 1e-6 <= c.values["lr_theta"] <= 1e-3
            assert c.values["warmup"] in (0.0, 0.1, 0.2, 0.3)
            assert 8 <= c.values["batch_size"] <= 128
            spec.train_config(c.values)

    def test_seed_changes_the_proposals(self) -> None:
        """Different seeds draw different configurations, if the searcher has a seed and supports ranges."""
        if self.searcher.lists or not self.has("seed") or not self.has("configurations"):
            return
        first, second = (play(self.made(RANGES, configurations=12, seed=seed), 12) for seed in (0, 1))
        assert {c.id for c in first}.isdisjoint(c.id for c in second)


def ran(values: dict[str, Any], score: float, state: ConfigState = "complete") -> Configuration:
    """Make a configuration with two runs of one epoch each.

    Args:
        values: Option → value.
        score: Mean of the two runs' scores, as a fraction.
        state: State of the configuration.

    Returns:
        The configuration.
    """
    cells = tuple(Cell(0, fold, "finished", (EpochScore(0, score + shift),)) for fold, shift in ((0, -0.01), (1, 0.01)))
    return Configuration(config_id(values), values, state, cells)


def _without_reports(c: Configuration) -> Configuration:
    return dataclasses.replace(c, cells=tuple(dataclasses.replace(cell, epochs=()) for cell in c.cells))


def quality(values: Mapping[str, Any]) -> float:
    """Compute an artificial score: best at λ1 = 1e-4 with the first method."""
    rate, first = float(values["lr_theta"]), bool(values["algorithm"] == _METHODS[0])
    return 0.9 - 0.1 * abs(math.log10(rate) + 4) - 0.05 * (not first)


def play(searcher: Searcher, rounds: int, history: History = ()) -> History:
    """Let a searcher suggest configurations one after another, each completed before the next.

    Args:
        searcher: The searcher.
        rounds: Largest number of suggestions.
        history: The configurations before them.

    Returns:
        The history after them.
    """
    for _ in range(rounds):
        values = searcher.suggest(history)
        if values is None:
            break
        history = (*history, ran(values, quality(values)))
    return history
