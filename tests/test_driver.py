"""The driver's decisions, without Ray: retries, fences, pruning, budgets, what is left after a restart."""

import dataclasses
import itertools
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ledger import cell_end, epoch
from toys import ToyProblem, toy_folds, toy_rows

from leebert.data.folds import Folds
from leebert.errors import LeaseError, StorageError
from tune.running.crossval import Study, run_attempt
from tune.running.driver import Driver
from tune.running.failures import MOST, Failure
from tune.running.session import beats
from tune.space import Budget
from tune.store.held_out import evaluated_paths, load_held_out
from tune.store.history import Placement
from tune.store.ledger import Ledger
from tune.tracking.feed import replay

GRID = [{"algorithm": a, "lr_theta": r} for a in ("clo-v2", "blo") for r in (1e-2, 1e-3)]


class Grid:
    def suggest(self, history):
        tried = [dict(c.values) for c in history]
        return next((g for g in GRID if g not in tried), None)


class NoPruner:
    def decide(self, history, config_id, cell, epoch):
        return True


class PruneAt:
    def __init__(self, config, cell, epoch):
        self.at = (config, cell, epoch)

    def decide(self, history, config_id, cell, epoch):
        return (config_id, cell, epoch) != self.at


def name(values):
    return f"{values['algorithm']}-{values['lr_theta']:g}"


def a_study(folder, folds=2, **training):
    options = {"batch_size": 24, "max_epochs": 2, "precision": "fp32", "lr_omega": 1e-2, **training}
    return Study(str(folder), ToyProblem(), toy_folds(folds), tuple((0, f) for f in range(folds)), options, None, "cpu")


def driver(folder, pruner=None, fresh=True, study=None, **options):
    ledger = Ledger(folder / "ledger")
    if fresh:
        writer = ledger.driver_writer(options.get("number", 1))
        writer.append({"kind": "sweep"})
        writer.close()
    return Driver(study or a_study(folder), ledger, Grid(), pruner or NoPruner(), config_id=name, **options)


def run_all(d, trials=1):
    """Drive attempts to their ends in this process."""
    while (attempt := d.next_attempt("t")) is not None:
        for records in run_attempt(d.study, attempt):
            if not d.receive(records) or d.stopping.reason():
                break
        d.trial_ended("t")
    return d.finish()


def test_a_sweep_completes_every_configuration_on_every_cell(tmp_path):
    d = driver(tmp_path)
    assert run_all(d) == "finished"
    assert [c.state for c in d.state.history()] == ["complete"] * 4
    assert all(len(c.scores) == 2 for c in d.state.history())
    again = Ledger(tmp_path / "ledger").read()
    assert again.history() == d.state.history()
    assert not list((tmp_path / "checkpoints").iterdir())
    assert len(list((tmp_path / "cells").iterdir())) == 8


def test_a_trial_that_waits_for_resources_is_queued_and_not_running(tmp_path):
    d = driver(tmp_path)
    running, queued = d.next_attempt("t1").config, d.next_attempt("t2").config
    d.started_trials = lambda: {"t1"}
    facts = {}
    beats(lambda **status: facts.update(status), d, planned_cells=8)()
    assert (facts["running"], facts["queued"]) == ([running], [queued])


@pytest.mark.slow
def test_a_dead_trial_is_tried_again_from_its_checkpoint_without_repeating_an_epoch(tmp_path):
    whole = driver(tmp_path / "a")
    run_all(whole)
    d = driver(tmp_path / "b")
    attempt = d.next_attempt("t1")
    dying = run_attempt(d.study, attempt)
    d.receive(next(dying))
    next(dying)  # written to the ledger, but never reported: the process dies here
    dying.close()
    d.trial_ended("t1", Failure("error", "worker killed"))
    second = d.next_attempt("t2")
    assert (second.config, second.attempt) == (attempt.config, 2)
    for records in run_attempt(d.study, second):
        d.receive(records)
    d.trial_ended("t2")
    run_all(d)
    scores = lambda s: {c.id: [k.epochs for k in c.cells] for c in s.history()}  # noqa: E731
    assert scores(d.state) == scores(whole.state)
    epochs = [
        (r["seed"], r["fold"], r["epoch"])
        for a in d.state.attempts[attempt.config].values()
        for r in d.ledger.records_of(attempt.config, a)
        if r["kind"] == "epoch"
    ]
    assert len(epochs) == len(set(epochs))


def test_a_configuration_that_dies_again_and_again_fails_and_the_rest_continues(tmp_path, log_lines):
    d = driver(tmp_path)
    first = d.next_attempt("t").config
    for _ in range(2):
        d.trial_ended("t", Failure("error", "boom"))
        assert d.next_attempt("t").config == first
    d.trial_ended("t", Failure("error", "boom"))
    assert d.state.configs[first].state == "failed"
    assert run_all(d) == "finished"
    assert sorted(c.state for c in d.state.history()) == ["complete"] * 3 + ["failed"]
    assert any("not tried again" in line for line in log_lines())


def test_a_permanent_failure_is_not_tried_again(tmp_path):
    d = driver(tmp_path)
    first = d.next_attempt("t").config
    d.trial_ended("t", Failure("refused", "data is gone"))
    assert d.next_attempt("t").config != first


def test_pruning_stops_the_trial_is_recorded_and_never_counts(tmp_path):
    d = driver(tmp_path, pruner=PruneAt("blo-0.01", (0, 0), 0))
    run_all(d)
    pruned = d.state.configs["blo-0.01"]
    assert pruned.state == "pruned"
    assert sum(len(c.epochs) for c in pruned.cells) == 1
    assert [c.state for c in d.state.history()].count("complete") == 3


def test_a_diverging_configuration_ends_as_failed_with_a_message(tmp_path, log_lines):
    d = driver(tmp_path)
    d.study = a_study(tmp_path, clip_norm=1e30)
    attempt = d.next_attempt("t")
    d.receive([{"seq": 0, "time": 0.0, **epoch(attempt.config, score=None) | {"score": None, "ended": "diverged"}}])
    go_on = d.receive(
        [{"seq": 1, "time": 0.0, "theta_updates": 3, **cell_end(attempt.config, ended="diverged", score=None)}]
    )
    assert not go_on
    assert d.state.configs[attempt.config].state == "failed"
    assert any("diverged after 3 updates" in line for line in log_lines())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "check"),
    [
        (Budget(trials=2), lambda s: len(s.configs) == 2),
        (Budget(fold_epochs=5), lambda s: 5 <= s.fold_epochs <= 6),
        (Budget(hours=1e-9), lambda s: s.fold_epochs <= 1),
    ],
)
def test_a_budget_ends_cleanly_and_the_rest_can_be_done_later(tmp_path, budget, check):
    d = driver(tmp_path, budget=budget)
    status = run_all(d)
    assert check(d.state)
    assert status == ("finished" if budget.trials else "stopped")
    later = driver(tmp_path, fresh=False)
    assert run_all(later) == "finished"
    assert [c.state for c in later.state.history()] == ["complete"] * 4
    assert later.state.fold_epochs == 16


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_stopped_anywhere_and_resumed_scores_are_bit_identical(tmp_path_factory, cuts):
    whole, torn = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("torn")
    expected = driver(whole)
    run_all(expected)
    fresh = True
    for cut in cuts:
        d = driver(torn, fresh=fresh)
        fresh, reports = False, 0
        while reports < cut and (attempt := d.next_attempt("t")) is not None:
            for records in run_attempt(d.study, attempt):
                reports += 1
                if reports == cut:
                    break  # killed after the ledger was written, before the driver heard
                d.receive(records)
            d.running.clear()
        d.records.writer.close()  # no end record: the driver was killed, too
    last = driver(torn, fresh=fresh)
    run_all(last)
    table = lambda d: {(c.id, k.seed, k.fold): k.epochs for c in d.state.history() for k in c.cells}  # noqa: E731
    assert table(last) == table(expected)
    assert {c.state for c in last.state.history()} == {"complete"}
    assert last.state.end["status"] == "finished"
    assert not list((torn / "checkpoints").iterdir())


def test_a_stop_on_request_is_seen_between_epochs(tmp_path):
    d = driver(tmp_path, stop_requested=lambda: (tmp_path / "STOP").exists())
    attempt = d.next_attempt("t")
    for records in run_attempt(d.study, attempt):
        d.receive(records)
        (tmp_path / "STOP").touch()
        if d.stopping.reason():
            break
    assert d.state.fold_epochs == 1
    assert d.next_attempt("t2") is None
    assert d.finish() == "stopped"
    assert d.ledger.read().end["note"] == "stopped on request"


def test_held_out_logits_reproduce_every_score(tmp_path):
    from leebert.metrics import per_exit
    from tune.store.held_out import held_out_path, load_held_out

    d = driver(tmp_path)
    run_all(d)
    rows = set()
    for (_, _, fold), record in d.state.cells.items():
        held_out, ids = load_held_out(held_out_path(tmp_path, record))
        assert ids.tolist() == np.flatnonzero(toy_folds(2).assignment == fold).tolist()
        assert per_exit("accuracy", held_out.labels, held_out.logits)["score"].tolist() == record["exits"]["score"]
        rows |= set(ids.tolist())
    assert len(rows) == 96
    assert isinstance(toy_folds(2), Folds)


def two_drivers(folder):
    """A first driver that was taken over by a second one without knowing it, and the second."""
    first = driver(folder)
    first.next_attempt("a")
    ledger = Ledger(folder / "ledger")
    writer = ledger.driver_writer(2)
    writer.append({"kind": "resume", "fences": ledger.driver_fences()})
    writer.close()
    return first, driver(folder, fresh=False, number=2)


def test_what_a_driver_decides_after_it_was_taken_over_does_not_count(tmp_path):
    first, second = two_drivers(tmp_path)
    late = first.next_attempt("b")  # it suggests another configuration and grants an attempt
    mine = second.next_attempt("a")
    assert (mine.config, mine.attempt) == ("clo-v2-0.01", 2)
    assert late.config not in second.ledger.read().configs
    for records in run_attempt(first.study, late):
        first.receive(records)
    second.trial_ended("a", Failure("node", "lost"))
    assert run_all(second) == "finished"
    state = Ledger(tmp_path / "ledger").read()
    assert state.history() == second.state.history()
    assert state.fold_epochs == 16
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.slow
def test_two_drivers_that_grant_the_same_attempt_give_it_folders_of_its_own(tmp_path):
    first, second = two_drivers(tmp_path)
    first.trial_ended("a", Failure("error", "its worker died"))
    theirs, ours = first.next_attempt("a"), second.next_attempt("a")
    assert (theirs.config, theirs.attempt) == (ours.config, ours.attempt)
    zombie, alive = run_attempt(first.study, theirs), run_attempt(second.study, ours)
    next(zombie)
    second.receive(next(alive))
    next(zombie)  # both write on, each in its own folder
    for records in alive:
        second.receive(records)
    second.trial_ended("a")
    whole = driver(tmp_path / "whole")
    run_all(whole)
    run_all(second)
    table = lambda d: {(c.id, k.seed, k.fold): k.epochs for c in d.state.history() for k in c.cells}  # noqa: E731
    assert table(second) == table(whole)


def test_a_third_driver_omits_what_the_second_did(tmp_path):
    first, second = two_drivers(tmp_path)
    second.next_attempt("a")
    first.next_attempt("b")
    ledger = Ledger(tmp_path / "ledger")
    assert ledger.driver_fences()["0001"] == 3, "sweep, suggest, grant"
    writer = ledger.driver_writer(3)
    writer.append({"kind": "resume", "fences": ledger.driver_fences()})
    writer.close()
    first.next_attempt("c")
    second.next_attempt("c")
    third = driver(tmp_path, fresh=False, number=3)
    assert set(third.state.configs) == {"clo-v2-0.01"}
    assert run_all(third) == "finished"
    assert [c.state for c in ledger.read().history()] == ["complete"] * 4


def test_whoever_lost_the_lease_decides_nothing_more(tmp_path):
    d = driver(tmp_path)
    d.next_attempt("t")
    before = sum(1 for _ in d.ledger.in_order())

    def lost():
        raise LeaseError("taken over by process 2 on far")

    d.records.may_decide = lost
    with pytest.raises(LeaseError, match="taken over"):
        d.next_attempt("u")
    d.finish("taken over")
    assert sum(1 for _ in d.ledger.in_order()) == before


def test_lost_nodes_are_no_failures_of_the_configuration_but_not_for_ever(tmp_path):
    d = driver(tmp_path)
    first = d.next_attempt("t").config
    for n in range(MOST + 1):
        assert d.state.configs[first].state == "running", n
        d.trial_ended("t", Failure("node", "its node was lost"))
        d.next_attempt("t")
    assert d.state.configs[first].state == "failed"


@pytest.mark.parametrize(
    ("gpus", "kind", "placements"),
    [
        (0.5, "gpu_memory", [("gpu", 1), ("gpu", 2), ("gpu", 4), ("gpu", 8), None]),
        (1, "gpu_memory", [("gpu", 2), ("gpu", 4), ("gpu", 8), None]),
        (0, "host_memory", [("node", 1), ("node", 2), ("node", 4), ("node", 8), None]),
        (0.5, "host_memory", [("node", 1), ("node", 2), ("node", 4), ("node", 8), None]),
    ],
)
def test_after_memory_ran_out_a_trial_is_alone_then_in_micro_batches_until_these_are_rows(
    tmp_path, gpus, kind, placements
):
    d = driver(tmp_path, gpus=gpus, study=a_study(tmp_path, batch_size=8))
    attempt = d.next_attempt("t")
    assert attempt.placement == Placement()
    for expected in placements:
        d.trial_ended("t", Failure(kind, "out of memory"))
        attempt = d.next_attempt("t")
        if expected is not None:
            assert attempt.placement == Placement(*expected)
    assert attempt.config != "clo-v2-0.01"
    assert d.state.configs["clo-v2-0.01"].state == "failed"
    # A driver that comes later knows it from the ledger.
    later = driver(tmp_path, fresh=False, gpus=gpus)
    assert later.attempts.placement(later.state.failures["clo-v2-0.01"][:1], "clo-v2-0.01") == Placement(*placements[0])


def test_where_nothing_ever_trains_the_sweep_stops_instead_of_failing_every_configuration(tmp_path):
    d = driver(tmp_path)
    for n in range(3):
        assert d.next_attempt(f"t{n}")
        d.trial_ended(f"t{n}", Failure("refused", "no module named leebert"))
    assert d.next_attempt("t4") is None
    assert "no module named leebert" in d.stopping.reason()
    assert d.finish() == "stopped"
    assert run_all(driver(tmp_path, fresh=False)) == "finished"  # once it is mended, with those three


def test_where_the_cause_is_not_mended_a_resumed_sweep_still_gets_past_what_failed(tmp_path):
    def fail(d):
        tried = []
        while attempt := d.next_attempt(f"t{len(tried)}"):
            tried.append(attempt.config)
            d.trial_ended(f"t{len(tried) - 1}", Failure("refused", "not with this option"))
        return tried, d.finish()

    first, status = fail(driver(tmp_path))
    assert (len(first), status) == (3, "stopped")
    second, status = fail(driver(tmp_path, fresh=False))
    assert second[:3] == first
    assert len(second) == 4, "the fourth is tried as well"


def test_no_sweep_is_stopped_while_something_trains_for_the_first_time(tmp_path):
    d = driver(tmp_path)
    d.next_attempt("long")
    for n in range(3):
        d.next_attempt(f"t{n}")
        d.trial_ended(f"t{n}", Failure("refused", "too long for this model"))
    assert d.stopping.reason() is None


class Answers:
    """A pruner that answers by the number of configurations that have reported, and counts how often it is asked."""

    def __init__(self, most):
        self.most, self.asked = most, []

    def decide(self, history, config, cell, epoch):
        self.asked.append((config, cell, epoch))
        return sum(bool(c.cells) for c in history) <= self.most


def test_a_pruner_that_is_asked_about_the_same_report_again_answers_as_it_did(tmp_path):
    d = driver(tmp_path, pruner=Answers(most=1))
    first, second = d.next_attempt("a").config, d.next_attempt("b").config
    assert d.receive([{"seq": 0, "time": 0.0, **epoch(first)}])
    assert not d.receive([{"seq": 0, "time": 1.0, **epoch(second)}])
    d.trial_ended("a", Failure("node", "its node was lost"))
    assert d.state.configs[first].state == "running", "by today's history it would have been pruned"
    assert first in d.waiting


def test_after_a_restart_too_though_both_reported_in_one_millisecond(tmp_path, monkeypatch):
    now = itertools.count()
    monkeypatch.setattr("tune.store.ledger.time.time", lambda: 1.7e9 + 2e-6 * next(now))
    d = driver(tmp_path, pruner=Answers(most=1))
    first, second = d.next_attempt("a"), d.next_attempt("b")
    for attempt in (first, second):
        writer = d.ledger.attempt_writer(attempt.config, attempt.name)
        d.receive(writer.append(epoch(attempt.config)))
    told = []
    state = replay(d.ledger, SimpleNamespace(put=told.append))
    later = driver(tmp_path, fresh=False, pruner=Answers(most=1), state=state, number=2)
    assert first.config in later.waiting
    assert later.state.configs[second.config].state == "pruned"


def test_cells_from_before_the_sweep_took_more_seeds_are_never_put_to_the_pruner(tmp_path):
    assert run_all(driver(tmp_path)) == "finished"
    more = dataclasses.replace(a_study(tmp_path), cells=((0, 0), (0, 1), (1, 0), (1, 1)))
    begun = driver(tmp_path, fresh=False, pruner=Answers(most=0), study=more)  # reopens all, and dies
    begun.next_attempt("t")
    begun.trial_ended("t", Failure("node", "its node was lost"))
    later = driver(tmp_path, fresh=False, pruner=Answers(most=0), study=more)
    assert len(later.waiting) == 4
    assert not begun.pruner.asked
    assert not later.pruner.asked


def test_an_end_that_cannot_be_recorded_is_no_success(tmp_path):
    lost = []

    def may_decide():
        if lost:
            raise LeaseError("taken over")

    d = driver(tmp_path, may_decide=may_decide)
    while (attempt := d.next_attempt("t")) is not None:
        for records in run_attempt(d.study, attempt):
            d.receive(records)
        d.trial_ended("t")
    lost.append(True)
    with pytest.raises(LeaseError):
        d.finish()


def test_where_one_configuration_has_trained_others_may_fail(tmp_path):
    d = driver(tmp_path)
    config = d.next_attempt("t").config
    d.receive([{"seq": 0, "time": 0.0, **epoch(config)}])
    for n in range(3):
        d.next_attempt(f"t{n}")
        d.trial_ended(f"t{n}", Failure("refused", "too long for this model"))
    assert d.stopping.reason() is None


def test_where_storage_fails_the_sweep_stops_and_nothing_is_marked_failed(tmp_path):
    d = driver(tmp_path)
    d.next_attempt("t")
    d.trial_ended("t", Failure("storage", "a checkpoint can't be written: No space left on device"))
    assert d.next_attempt("t") is None
    assert d.finish() == "stopped"
    assert d.ledger.read().end["note"].endswith("No space left on device")
    later = driver(tmp_path, fresh=False)
    assert run_all(later) == "finished"
    assert [c.state for c in later.state.history()] == ["complete"] * 4


def test_a_driver_whose_own_records_cannot_be_written_ends_without_one(tmp_path):
    d = driver(tmp_path)
    folder = tmp_path / "ledger" / "driver" / "0001"
    shutil.rmtree(folder)
    folder.write_text("the storage is gone")
    with pytest.raises(StorageError, match="can't be written"):
        d.next_attempt("t")
    assert d.finish("storage") == "failed"


@pytest.mark.slow
def test_more_seeds_reopen_what_was_complete_and_train_only_the_new_cells(tmp_path):
    d = driver(tmp_path)
    run_all(d)
    before = {(c.id, k.seed, k.fold): k.epochs for c in d.state.history() for k in c.cells}
    more = dataclasses.replace(a_study(tmp_path), cells=((0, 0), (0, 1), (1, 0), (1, 1)))
    later = driver(tmp_path, fresh=False, study=more)
    assert [c.state for c in later.state.history()] == ["running"] * 4
    attempt = later.next_attempt("t")
    assert sorted(attempt.finished) == [(0, 0), (0, 1)]
    later.trial_ended("t", Failure("node", "lost"))
    assert run_all(later) == "finished"
    after = {(c.id, k.seed, k.fold): k.epochs for c in later.state.history() for k in c.cells}
    assert before.items() <= after.items()
    assert len(after) == 16
    assert later.state.fold_epochs == 32
    assert [c.state for c in Ledger(tmp_path / "ledger").read().history()] == ["complete"] * 4


@pytest.mark.slow
def test_a_cell_saves_its_best_epochs_logits_on_the_evaluation_split_also_when_resumed(tmp_path):
    def evaluating(folder, stop_after):
        """Every cell is cut off after so many epochs and gone on with in another attempt."""
        d = driver(folder, study=dataclasses.replace(a_study(folder, max_epochs=3), evaluate=("dev",)))
        while (attempt := d.next_attempt("t")) is not None:
            cut = False
            for n, records in enumerate(run_attempt(d.study, attempt), start=1):
                d.receive(records)
                cut = n == stop_after
                if cut:
                    break
            d.trial_ended("t", Failure("node", "its node was lost") if cut else None)
        assert d.finish() == "finished"
        return {
            cell: (record, {split: load_held_out(path)[0] for split, path in evaluated_paths(folder, record).items()})
            for cell, record in d.ledger.read().cells.items()
        }

    whole, cut = evaluating(tmp_path / "whole", None), evaluating(tmp_path / "cut", 1)
    assert len(whole) == 8
    for cell, (record, splits) in whole.items():
        assert splits["dev"].labels.tolist() == toy_rows(24, seed=1).columns["labels"].tolist()
        again, same = cut[cell]
        assert record["best_epoch"] == again["best_epoch"]
        assert np.array_equal(splits["dev"].logits, same["dev"].logits)
        assert f"-e{record['best_epoch']:03d}-dev" in again["evaluated"]["dev"]
    # The last epoch is not always the best one, else the test would miss a file taken from the wrong epoch.
    assert {record["best_epoch"] for record, _ in whole.values()} != {2}


def test_a_driver_that_was_taken_over_decides_nothing_and_leaves_the_new_ones_checkpoints_alone(tmp_path):
    lost, heard = [], []

    def may_decide():
        if lost:
            raise LeaseError("taken over")

    listener = SimpleNamespace(put=heard.append)
    d = driver(tmp_path, may_decide=may_decide, listener=listener)
    attempt = d.next_attempt("t")
    records = next(run_attempt(d.study, attempt))
    of_another = tmp_path / "checkpoints" / "new-s0-f0" / "0001-0002" / "epoch-0000"
    of_another.mkdir(parents=True)
    lost.append(True)
    before, told = d.ledger.in_order(), list(heard)
    with pytest.raises(LeaseError):
        d.receive(records)
    with pytest.raises(LeaseError):
        d.next_attempt("t2")
    d.finish("taken over")
    assert of_another.exists()
    assert d.ledger.in_order() == before
    assert heard == told


def test_a_trial_that_was_abandoned_and_ends_its_cell_leaves_the_next_ones_checkpoints_alone(tmp_path):
    d = driver(tmp_path)
    zombie = run_attempt(d.study, d.next_attempt("a"))
    d.receive(next(zombie))
    d.trial_ended("a", Failure("node", "lost"))
    alive = run_attempt(d.study, d.next_attempt("b"))
    next(zombie)  # the end of the cell, for the one that was given up
    (first,) = [next(alive)]
    assert [r["epoch"] for r in first if r["kind"] == "epoch"] == [1], "it goes on from what the other has left"
    d.receive(first)  # its own end of the cell
    d.receive(next(alive))
    mine = tmp_path / "checkpoints" / "clo-v2-0.01-s0-f1" / "0002-0001"
    assert list(mine.glob("epoch-*"))
    next(zombie)
    list(zombie)
    assert list(mine.glob("epoch-*"))


@pytest.mark.parametrize("end", ["diverged", "max_epochs"])
def test_a_trial_that_wrote_its_end_and_died_before_it_reported_it_has_ended(tmp_path, end):
    d = driver(tmp_path)
    attempt = d.next_attempt("t")
    writer = d.ledger.attempt_writer(attempt.config, attempt.name)
    score = None if end == "diverged" else 0.5
    for fold in range(1 if end == "diverged" else 2):
        best = {"best_epoch": 0, "epochs": 1, "seconds": 1.0, "exits": {"score": [0.5]}}
        writer.append(epoch(attempt.config, fold=fold) | {"score": score, "ended": end})
        writer.append(cell_end(attempt.config, fold=fold, ended=end, score=score) | {"theta_updates": 3, **best})
    d.trial_ended("t", Failure("node", "its node was lost"))
    state = "failed" if end == "diverged" else "complete"
    assert d.state.configs[attempt.config].state == state
    assert attempt.config not in d.waiting
    assert Ledger(tmp_path / "ledger").read().configs[attempt.config].state == state
    later = driver(tmp_path, fresh=False)
    assert attempt.config not in later.waiting
