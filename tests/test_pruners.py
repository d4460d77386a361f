"""The contract of every pruner, the pairing of successive halving, and the margin of racing."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from tune.pruners import PRUNERS, make_pruner
from tune.pruners.halving import HalvingPruner
from tune.pruners.none import NoPruner
from tune.pruners.places import Places
from tune.pruners.racing import STARTUP, RacingPruner
from tune.space import SweepSpec
from tune.store.history import Configuration, History
from tune.testing import PrunerContract
from tune.testing import configuration as config

FOLDS, EPOCHS = 3, 3
CELLS = tuple((0, fold) for fold in range(FOLDS))
PLACES = Places(CELLS, EPOCHS)
Scores = list[list[float]]


def spec_of(name: str, **pruner: Any) -> SweepSpec:
    return SweepSpec.model_validate(
        {
            "task": "mrpc",
            "backbone": "x",
            "space": {"lr_theta": [1e-5, 2e-5]},
            "training": {"max_epochs": EPOCHS},
            "folds": FOLDS,
            "pruner": {"name": name, **pruner},
        }
    )


def finished(name: str, scores: Scores) -> Configuration:
    """A configuration that has completed these cells."""
    return config(name, scores, "finished", "complete")


score = st.integers(0, 8).map(lambda n: n / 8)  # few values, so that there are ties; exact, so that shifts are too
whole_cell = st.lists(score, min_size=EPOCHS, max_size=EPOCHS)
full_scores = st.lists(whole_cell, min_size=FOLDS, max_size=FOLDS)


@st.composite
def partial_scores(draw: st.DrawFn) -> Scores:
    """Some ended cells, each perhaps stopped early, and a last one in progress."""
    ended = draw(st.lists(st.lists(score, min_size=1, max_size=EPOCHS), max_size=FOLDS - 1))
    return [*ended, draw(st.lists(score, min_size=1, max_size=EPOCHS))]


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Some configurations that run, and some that are complete."""
    running = draw(st.lists(partial_scores(), min_size=1, max_size=6))
    complete = draw(st.lists(full_scores, max_size=5))
    return (
        *(config(f"r{i}", scores) for i, scores in enumerate(running)),
        *(finished(f"c{i}", scores) for i, scores in enumerate(complete)),
    )


def running(history: History) -> list[Configuration]:
    """Those that a pruner is asked about."""
    return [c for c in history if c.state == "running"]


def place(configuration: Configuration) -> tuple[tuple[int, int], int]:
    """The cell and epoch of its last report."""
    cell = configuration.cells[-1]
    return (cell.seed, cell.fold), cell.epochs[-1].epoch


def decide(pruner: Any, history: History, configuration: Configuration) -> bool:
    return pruner.decide(history, configuration.id, *place(configuration))


def at(history: History, resource: int) -> History:
    """What a history of full configurations was when each had trained so many epochs."""
    whole, rest = divmod(resource, EPOCHS)
    return tuple(
        dataclasses.replace(
            c,
            cells=(
                *c.cells[:whole],
                *(
                    dataclasses.replace(k, state="running", epochs=k.epochs[:rest])
                    for k in c.cells[whole : whole + 1]
                    if rest
                ),
            ),
        )
        for c in history
    )


class TestNone(PrunerContract):
    pruner = PRUNERS["none"]


class TestRacing(PrunerContract):
    pruner = PRUNERS["racing"]
    options = {"alpha": 0.4}  # noqa: RUF012


class TestHalving(PrunerContract):
    pruner = PRUNERS["halving"]


def test_every_pruner_of_ours_has_its_contract_here() -> None:
    missing = {*PRUNERS.built_in} - {cls.pruner.name for cls in PrunerContract.__subclasses__()}
    assert not missing, f"add a class with PrunerContract to this file for each of {missing}"


names = st.sampled_from(PRUNERS.built_in)


def test_options_of_the_file_are_the_pruners() -> None:
    assert make_pruner(spec_of("halving", eta=2, min_epochs=3)) == HalvingPruner(PLACES, 2, 3)
    assert make_pruner(spec_of("racing", alpha=0.1, min_epochs=2)) == RacingPruner(PLACES, 0.1, 2)
    assert make_pruner(spec_of("none")) == NoPruner()


@given(name=names, every=st.lists(full_scores, min_size=1, max_size=9), resource=st.integers(1, FOLDS * EPOCHS))
def test_the_best_at_a_place_continues(name: str, every: list[Scores], resource: int) -> None:
    """With everything known up to there: whoever has the best paired mean isn't pruned."""
    history = at(tuple(config(f"c{i}", scores, "finished") for i, scores in enumerate(every)), resource)
    means = {c.id: math.fsum(max(e.score for e in k.epochs) for k in c.cells) for c in history}
    for configuration in history:
        if means[configuration.id] == max(means.values()):
            assert decide(make_pruner(spec_of(name)), history, configuration)


@given(name=names, history=histories(), asked=partial_scores())
def test_who_is_behind_nobody_on_the_same_cells_continues(name: str, history: History, asked: Scores) -> None:
    new = config("new", asked)
    (seed, fold), epoch = place(new)
    at_place = CELLS.index((seed, fold)) * EPOCHS + epoch + 1
    others = [PLACES.score(c, at_place) for c in history]
    own = PLACES.score(new, at_place)
    assume(own is not None and all(other is None or own >= other for other in others))
    assert decide(make_pruner(spec_of(name)), (*history, new), new)


@given(name=names, history=histories(), shifts=st.lists(st.integers(0, 24), min_size=FOLDS, max_size=FOLDS))
def test_how_hard_a_fold_is_does_not_matter(name: str, history: History, shifts: list[int]) -> None:
    """The paired differences alone decide: a fold may add the same to everybody's scores."""

    def shifted(c: Configuration) -> Configuration:
        cells = (
            dataclasses.replace(
                k, epochs=tuple(dataclasses.replace(e, score=e.score + shifts[k.fold] / 8) for e in k.epochs)
            )
            for k in c.cells
        )
        return dataclasses.replace(c, cells=tuple(cells))

    moved = tuple(shifted(c) for c in history)
    pruner = make_pruner(spec_of(name))
    for before, after in zip(running(history), running(moved), strict=True):
        assert decide(pruner, history, before) == decide(pruner, moved, after)


# Halving.


def halving(eta: int = 3, min_epochs: int = 1) -> HalvingPruner:
    return HalvingPruner(PLACES, eta, min_epochs)


@pytest.mark.parametrize(
    ("eta", "min_epochs", "rungs"), [(3, 1, [1, 3]), (2, 1, [1, 2, 4, 8]), (2, 3, [3, 6]), (4, 2, [2, 8]), (3, 9, [])]
)
def test_rungs_end_before_the_last_epoch(eta: int, min_epochs: int, rungs: list[int]) -> None:
    assert list(halving(eta, min_epochs).rungs()) == rungs


def test_one_in_eta_passes() -> None:
    history = tuple(config(f"c{i}", [[i / 10]]) for i in range(9))
    assert [decide(halving(3), history, c) for c in history] == [False] * 6 + [True] * 3
    assert [decide(halving(4), history, c) for c in history] == [False] * 7 + [True] * 2


def test_between_rungs_everybody_continues() -> None:
    history = (config("good", [[0.9, 0.9]]), config("bad", [[0.1, 0.1]]))
    assert decide(halving(3), history, history[1])  # two epochs; the rungs are at one and three


def test_ties_continue() -> None:
    history = tuple(config(f"c{i}", [[0.5]]) for i in range(6))
    assert all(decide(halving(), history, c) for c in history)


def test_those_who_come_first_pass() -> None:
    """Asynchronous: nobody is judged by configurations that haven't come as far."""
    bad, good = config("bad", [[0.1]]), config("good", [[0.9]])
    assert decide(halving(), (bad,), bad)
    assert decide(halving(), (bad, good), good)
    assert not decide(halving(), (good, bad), bad)


def test_compares_the_same_cells_only() -> None:
    """The second fold is harder: whoever is in it mustn't look worse than those who are still in the first."""
    pruner = HalvingPruner(PLACES, 2, 4)  # one rung: the first epoch of the second cell
    ahead = config("ahead", [[0.9, 0.9, 0.9], [0.3]])
    others = tuple(config(f"c{i}", [[0.8, 0.8, 0.8]]) for i in range(5))
    assert decide(pruner, (*others, ahead), ahead)
    better = config("better", [[0.7, 0.7, 0.7], [0.7]])
    assert not decide(pruner, (*others, ahead, better), ahead)


def test_compares_the_same_epoch_only() -> None:
    """A configuration that is far ahead is judged by what it had at the rung."""
    ahead = config("ahead", [[0.2, 0.9, 0.9], [0.9]])
    asked = config("asked", [[0.3]])
    assert decide(halving(), (ahead, asked), asked)


def test_best_so_far_counts_not_the_last() -> None:
    pruner = halving(2, 2)
    asked, other = config("asked", [[0.9, 0.1]]), config("other", [[0.5, 0.5]])
    assert decide(pruner, (asked, other), asked)
    assert not decide(pruner, (asked, other), other)


def test_an_early_stop_counts_all_its_epochs() -> None:
    """The cell ended after one epoch of three: its end is judged at the rung of the third."""
    stopped = config("stopped", [[0.2]], "finished")
    strong, weak = config("strong", [[0.1, 0.2, 0.9]]), config("weak", [[0.1, 0.1, 0.1]])
    pruner = halving(3, 3)
    assert not decide(pruner, (strong, stopped), stopped)
    assert decide(pruner, (weak, stopped), stopped)
    assert not decide(pruner, (weak, stopped), weak)


def test_a_diverged_cell_is_worst() -> None:
    diverged, weak = config("diverged", [[0.9]], "diverged"), config("weak", [[0.0]])
    assert not decide(halving(), (weak, diverged), diverged)
    assert decide(halving(), (weak, diverged), weak)
    assert PLACES.score(diverged, 3) == -math.inf
    assert PLACES.score(diverged, 4) is None  # it never came to the second cell


def test_what_the_history_lacks_is_an_error() -> None:
    history = (config("a", [[0.5]]),)
    with pytest.raises(ValueError, match="no epoch 1 of configuration a"):
        halving().decide(history, "a", (0, 0), 1)
    with pytest.raises(ValueError, match="configuration b"):
        halving().decide(history, "b", (0, 0), 0)


@given(history=histories(), data=st.data(), name=names)
def test_a_better_score_never_hurts(history: History, data: st.DataObject, name: str) -> None:
    asked = data.draw(st.sampled_from(running(history)))
    cells = list(asked.cells)
    i = data.draw(st.integers(0, len(cells) - 1))
    j = data.draw(st.integers(0, len(cells[i].epochs) - 1))
    epochs = list(cells[i].epochs)
    epochs[j] = dataclasses.replace(epochs[j], score=epochs[j].score + data.draw(score))
    cells[i] = dataclasses.replace(cells[i], epochs=tuple(epochs))
    raised = dataclasses.replace(asked, cells=tuple(cells))
    pruner = make_pruner(spec_of(name))
    if decide(pruner, history, asked):
        assert decide(pruner, tuple(raised if c is asked else c for c in history), raised)


@given(every=st.lists(full_scores, min_size=2, max_size=9), eta=st.integers(2, 4), data=st.data())
def test_what_comes_later_changes_nothing(every: list[Scores], eta: int, data: st.DataObject) -> None:
    """At a rung, others who have gone further are judged by what they had there."""
    pruner = halving(eta)
    rung = data.draw(st.sampled_from(list(pruner.rungs())))
    full = tuple(config(f"c{i}", scores, "finished") for i, scores in enumerate(every))
    then = at(full, rung)
    asked = then[0]
    assert decide(pruner, then, asked) == decide(pruner, (asked, *full[1:]), asked)


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=20, unique=True), eta=st.integers(2, 5))
def test_as_many_pass_as_eta_sets(values: list[float], eta: int) -> None:
    history = tuple(config(f"c{i}", [[value]]) for i, value in enumerate(values))
    assert sum(decide(halving(eta), history, c) for c in history) == max(1, len(values) // eta)


# Racing.

RACING = RacingPruner(PLACES, 0.05)


def ended(name: str, first: float, gain: float) -> Configuration:
    """A completed configuration with one score in its first cell, whose mean over all cells is `gain` higher."""
    rest = first + gain * FOLDS / (FOLDS - 1)
    return finished(name, [[first] * EPOCHS, *[[rest] * EPOCHS] * (FOLDS - 1)])


GAINS = (0.01, -0.02, 0.03, 0.0)
RIVALS = tuple(ended(f"c{i}", 0.7, gain) for i, gain in enumerate(GAINS))
MARGIN = stats.t.ppf(0.95, len(GAINS) - 1) * math.sqrt(2) * np.std(GAINS, ddof=1)


@pytest.mark.parametrize(("behind", "goes_on"), [(0.98, True), (1.02, False)])
def test_racing_stops_beyond_the_margin_of_the_gains(behind: float, goes_on: bool) -> None:
    asked = config("asked", [[0.7 - behind * MARGIN] * EPOCHS], "finished")
    assert decide(RACING, (*RIVALS, asked), asked) is goes_on


def test_racing_asks_how_far_behind_the_best_complete_one_it_was_then() -> None:
    """The best in the end was behind at first: who is as far behind as it was is not stopped for that."""
    late = ended("late", 0.5, 0.4)
    asked = config("asked", [[0.5] * EPOCHS], "finished")
    assert decide(RACING, (*RIVALS, late, asked), asked)


def test_racing_needs_some_complete_ones_first() -> None:
    hopeless = config("hopeless", [[0.0] * EPOCHS], "finished")
    assert decide(RACING, (*RIVALS[: STARTUP - 1], hopeless), hopeless)
    assert not decide(RACING, (*RIVALS[:STARTUP], hopeless), hopeless)
    patient = RacingPruner(PLACES, 0.05, min_epochs=EPOCHS + 1)
    assert decide(patient, (*RIVALS, hopeless), hopeless)


@given(history=histories(), asked=partial_scores())
def test_racing_looks_at_complete_ones_only(history: History, asked: Scores) -> None:
    """Those that run, were pruned or have failed were picked by their scores so far, or say nothing of the end."""
    new = config("new", asked)
    complete = tuple(c for c in history if c.state == "complete")
    others = tuple(dataclasses.replace(c, state="pruned") for c in running(history))
    expected = decide(RACING, (*complete, new), new)
    assert decide(RACING, (*history, new), new) == expected
    assert decide(RACING, (*complete, *others, new), new) == expected


def test_racings_margin_holds_what_alpha_sets() -> None:
    """With normal gains, the difference to a rival makes up the margin with about the probability alpha."""
    rng = np.random.default_rng(0)
    gains = rng.normal(0.0, 0.01, size=(4000, 9))  # the last column: the one that is asked about
    made_up = [asked - rivals[0] > RACING.margin(list(rivals)) for *rivals, asked in gains.tolist()]
    assert np.mean(made_up) == pytest.approx(RACING.alpha, abs=0.02)
