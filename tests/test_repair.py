"""Held-out logits that were deleted, cut, damaged or swapped: seen by all who read them, and made again cell by cell."""

import dataclasses
import shutil

import numpy as np
import pytest
from made_sweep import made_sweep
from recorded import crowded
from test_driver import a_study, driver, run_all

from leebert.errors import SweepError
from leebert.evaluate import RecordedLogits
from tune.analysis.report import sweep_page
from tune.analysis.tradeoff import curves
from tune.running.crossval import run_attempt
from tune.space import Budget
from tune.store.curves import layers_needed, stored
from tune.store.held_out import cell_logits, count_unchecked, damaged, evaluated_logits, held_out_path, warn_unreadable
from tune.store.ledger import Ledger

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A complete sweep whose cells also left logits on an evaluation split."""
    folder = tmp_path_factory.mktemp("evaluated")
    assert (
        run_all(driver(folder, study=dataclasses.replace(a_study(folder, batch_size=8), evaluate=("dev",))))
        == "finished"
    )
    return folder


@pytest.fixture
def place(evaluated, tmp_path):
    shutil.copytree(evaluated, tmp_path / "s")
    return tmp_path / "s"


def reading(folder, **options):
    study = dataclasses.replace(a_study(folder, batch_size=8, **options.pop("training", {})), evaluate=("dev",))
    return driver(folder, fresh=False, study=study, **options)


def flip(path, at=100):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def files(folder):
    return {p.name: p.read_bytes() for part in ("cells", "evaluated") for p in (folder / part).iterdir()}


def test_every_file_of_every_cell_has_a_digest_and_any_damage_to_it_is_seen(place):
    cells = Ledger(place / "ledger").read().cells
    assert len(cells) == 8
    assert damaged(place, cells) == {}
    assert count_unchecked(cells.values()) == 0
    (first, record), (second, other) = list(cells.items())[:2]
    assert record["digests"].keys() == {record["held_out"], *record["evaluated"].values()}
    mine, theirs = held_out_path(place, record), held_out_path(place, other)
    whole = mine.read_bytes()
    for at in (0, 10, len(whole) // 2, len(whole) - 1):
        flip(mine, at)
        assert damaged(place, cells).keys() == {first}
        mine.write_bytes(whole)
    mine.write_bytes(theirs.read_bytes())
    theirs.write_bytes(whole)
    wrong = damaged(place, cells)
    assert wrong.keys() == {first, second}
    assert "belongs to another run" in wrong[first]
    with pytest.raises(SweepError, match="is not the file that the ledger records"):
        cell_logits(place, record)


def test_damage_to_the_logits_of_an_evaluation_split_is_seen(place):
    cells = Ledger(place / "ledger").read().cells
    (key, record), *_ = cells.items()
    flip(place / "evaluated" / record["evaluated"]["dev"])
    assert damaged(place, cells).keys() == {key}
    with pytest.raises(SweepError, match=r"-dev\.parquet is not the file"):
        evaluated_logits(place, record)


def test_a_ledger_of_an_older_version_is_read_and_known_to_be_unchecked(place, log_lines):
    record = dict(next(iter(Ledger(place / "ledger").read().cells.values())))
    del record["digests"]
    assert cell_logits(place, record)[0].logits.shape[0] == 3
    assert count_unchecked([record]) == 1
    assert len(curves(place, {(record["config"], 0, 0): record}, "accuracy", "confidence")) == 1
    assert log_lines() == [
        "note: 1 runs were recorded without digests by an older version: damage to their logits can't be detected"
    ]


@pytest.mark.parametrize("torn", [False, True])
def test_a_damaged_cell_alone_is_trained_again_to_the_same_bits(place, evaluated, torn, log_lines):
    before = Ledger(place / "ledger").read()
    key = list(before.cells)[3]
    flip(held_out_path(place, before.cells[key]))
    d = reading(place, repair=list(damaged(place, before.cells)))
    if torn:  # killed in the repair; the next driver needs not be told of it again
        attempt = d.next_attempt("t")
        running = run_attempt(d.study, attempt)
        d.receive(next(running))
        running.close()
        d.records.writer.close()
        d = reading(place)
    attempt = d.next_attempt("t")
    assert attempt.config == key[0]
    cells = {tuple(cell) for cell in d.study.cells}
    assert cells - {tuple(cell) for cell in attempt.finished} == {key[1:]}
    for records in run_attempt(d.study, attempt):
        d.receive(records)
        assert {(r["seed"], r["fold"]) for r in records} == {key[1:]}
    d.trial_ended("t")
    assert d.next_attempt("t") is None
    assert d.finish() == "finished"
    assert any("repaired: scores identical bit for bit" in line for line in log_lines())
    after = Ledger(place / "ledger").read()
    assert after.history() == d.state.history() == before.history()
    assert after.fold_epochs == before.fold_epochs
    assert damaged(place, after.cells) == {}
    assert {k for k in before.cells if after.cells[k] != before.cells[k]} == {key}
    made, whole = (cell_logits(f, r)[0] for f, r in ((place, after.cells[key]), (evaluated, before.cells[key])))
    assert np.array_equal(made.logits, whole.logits)
    kinds = [r["kind"] for r in d.ledger.in_order()]
    assert kinds.count("cell_end") == 9


def test_a_repair_that_comes_to_other_scores_reports_it_and_the_new_ones_count(place, log_lines):
    before = Ledger(place / "ledger").read()
    key = next(iter(before.cells))
    held_out_path(place, before.cells[key]).unlink()
    d = reading(place, repair=[key], training={"lr_omega": 0.5})  # stands for another machine
    assert run_all(d) == "finished"
    after = Ledger(place / "ledger").read()
    (said,) = [line for line in log_lines() if "repaired" in line]
    old, new = before.cells[key], after.cells[key]
    if old["exits"] == new["exits"]:
        pytest.skip("both trainings have the same scores")
    assert said.startswith("warning: ")
    assert f"the validation score was {100 * old['score']:.4f} before and is {100 * new['score']:.4f} now" in said
    assert cell_logits(place, new)


def test_where_the_budget_is_used_nothing_is_opened_to_be_repaired(place, log_lines):
    before = Ledger(place / "ledger").read()
    key = next(iter(before.cells))
    held_out_path(place, before.cells[key]).unlink()
    d = reading(place, repair=[key], budget=Budget(fold_epochs=before.fold_epochs))
    assert run_all(d) == "stopped"
    assert [c.state for c in d.state.history()] == ["complete"] * 4
    assert log_lines() == [
        f"nothing is repaired, since the budget of {before.fold_epochs} fold-epochs is used: raise it "
        "(--set budget.KEY=VALUE) and run the same command again"
    ]


def test_a_page_does_not_ask_for_what_no_repair_makes(tmp_path, recwarn):
    """A pruned configuration's logits feed nothing, so that a repair leaves them."""
    folder = made_sweep(
        tmp_path / "s", "sqlite:///nowhere.db", held_out=lambda index, fold: crowded(6 + fold), configs=2
    )
    state = folder.ledger.read(epochs=False)
    (cell,) = [r for (config, *_), r in state.cells.items() if state.configs[config].state == "pruned"]
    held_out_path(folder.path, cell).unlink()
    sweep_page(folder)
    assert not [str(w.message) for w in recwarn if "--repair" in str(w.message)]


def test_a_page_shows_the_recorded_layers_of_a_cell_whose_logits_are_gone(tmp_path):
    folder = made_sweep(
        tmp_path / "s", "sqlite:///nowhere.db", held_out=lambda index, fold: crowded(6 + fold), configs=2
    )
    state = folder.ledger.read(epochs=False)
    (config,) = [c.id for c in state.history() if c.state == "complete"]
    needed = layers_needed(state.cells_of[config], stored)
    held_out_path(folder.path, state.cells[config, 0, 0]).unlink()
    with pytest.warns(UserWarning, match="is missing"):
        assert f"<td>{needed:.2f}</td>" in str(sweep_page(folder))


@pytest.mark.slow
def test_a_page_and_a_comparison_omit_a_damaged_cell_and_name_it(tmp_path, cli):
    def logits(index, fold):
        rng = np.random.default_rng([index, fold])
        return RecordedLogits(rng.normal(size=(6, 40, 2)).astype(np.float32), rng.integers(2, size=40))

    folder = made_sweep(tmp_path / "s", "sqlite:///nowhere.db", held_out=logits, configs=7)
    state = folder.ledger.read(epochs=False)
    config = next(c.id for c in state.history() if c.state == "complete" and c.values["algorithm"] == "clo-v2")
    flip(held_out_path(folder.path, state.cells[config, 0, 1]))
    named = f"configuration {config}, seed 0, fold 1: .*is not the file that the ledger records"
    ran = cli("leebert-tune", "compare", "s", "--a", "clo-v2", "--b", "blo", "--speed-up", "2", "--storage", tmp_path)
    assert ran.code == 0, ran.err
    assert "warning: configuration" in ran.err
    assert "not at speed-up" not in ran.out
    with pytest.warns(UserWarning, match=named):
        page = sweep_page(folder)
    page.write(tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 1000


@pytest.mark.parametrize(("runs", "more"), [(3, ""), (4, "; and 1 more")])
def test_a_warning_names_three_unreadable_runs_and_counts_the_others(tmp_path, runs, more):
    with pytest.warns(UserWarning, match="--repair") as warned:
        warn_unreadable(tmp_path, {("c", 0, fold): "gone" for fold in range(runs)})
    named = "; ".join(f"configuration c, seed 0, fold {fold}: gone" for fold in range(3))
    assert str(warned[0].message).startswith(f"{named}{more}; results computed from logits are without them")
