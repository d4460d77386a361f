"""`compare` on sweeps' folders: which sweeps are taken, what is narrowed and drawn, what is said of unfinished ones."""

from __future__ import annotations

import contextlib
import shutil
import warnings

import numpy as np
import pytest
from pages import outline
from scored_sweep import scored_sweep

from leebert.errors import ConfigError
from tune.analysis.compare_html import comparison_page, sides
from tune.analysis.compare_sweeps import across, compare_sweeps
from tune.analysis.compare_text import across_sentences, print_comparisons, sentences
from tune.analysis.figures import depth_bands
from tune.analysis.report import sweep_page
from tune.analysis.stats import corrected_t
from tune.analysis.tradeoff import RankingObjective
from tune.store.lease import Lease

pytestmark = pytest.mark.usefixtures("undrawn")

AT_2 = (RankingObjective.of("speed-up=2"),)


def ahead(by: float, *, noise: int = 0):
    """CLO is ahead of BLO, a little differently on every cell."""

    def score(values, seed, fold):
        rng = np.random.default_rng([noise, seed, fold, int(1e6 * values["lr_theta"])])
        extra = by * values.get("cycle_length", 0) / 4
        return 0.6 + extra + 0.001 * fold * (values["algorithm"] != "blo") + 0.01 * float(rng.normal())

    return score


# One sweep


def test_what_is_drawn_is_narrowed_and_paired(tmp_path):
    # With C=2 CLO's best is elsewhere, and a partner of C=4 was pruned after one cell.
    def score(values, seed, fold):
        return 0.9 if values.get("cycle_length") == 2 else ahead(0.1)(values, seed, fold)

    def last_blo(values):
        return values["algorithm"] == "blo" and values["lr_theta"] == 1e-4

    sweep = scored_sweep(
        tmp_path / "s", score, state=lambda v: "pruned" if last_blo(v) else "complete",
        cells=lambda v: 1 if last_blo(v) else 3,
    )  # fmt: skip
    (found,) = compare_sweeps([sweep], "clo-v2", "blo", where={"cycle_length": "4"}, epochs=True)
    history = found.pool.state.history()
    narrowed = sides(found.scores, history)
    assert {c.values.get("cycle_length") for c in narrowed["CLO-v2"]} == {4}
    (line,) = found.scores.lines
    assert len(line.paired) == 1, "the pruned one's partner isn't drawn either"
    bands = depth_bands(line, history, found.pool.score_interval)
    known = {c.id: c for c in history}
    for name, config in zip((line.a, line.b), line.paired[0], strict=True):
        expected = 100 * np.mean([cell.best.exits for cell in known[config].cells], axis=0)
        assert bands[name][1] == pytest.approx(expected)
    drawn = comparison_page([found])
    assert outline(drawn) == {
        "": "verdict, figure, 3 text",
        "Score by exit": "figure",
        "Patience": "2 figures, 2 text",
        "Learned weights over time": "2 figures, text",
        "Mean over exits, and each exit": "text, table, 9 text",
    }
    page = str(drawn)
    assert "The best configurations: CLO-v2 λ1=1e-05 C=4; BLO λ1=1e-05." in page
    assert "cycle_length=2" not in page


@pytest.mark.slow
def test_a_speed_up_that_is_unknown_does_not_prevent_the_comparison(tmp_path, capsys):
    sweep = scored_sweep(tmp_path / "s", ahead(0.1))
    beyond = (*AT_2, RankingObjective.of("speed-up=3.5"))
    (found,) = compare_sweeps([sweep], "clo-v2", "blo", objectives=beyond)
    (_, at_2), (_, missed) = found.at_speed_ups
    assert not isinstance(at_2, str)
    assert "on 3 exits reaches layer speed-ups from 1 to 3.00;" in missed
    (gone,) = {p for p in (sweep.path / "cells").iterdir() if f"{found.scores.lines[0].paired[0][0]}-s0-f0" in p.name}
    gone.unlink()
    with pytest.warns(UserWarning, match=f"{gone.name} is missing"):
        (found,) = compare_sweeps([sweep], "clo-v2", "blo", objectives=AT_2)
    assert [line.dropped for line in found.at_speed_ups[0][1].lines] == [{"unfinished": 1}, {}]
    (narrowed,) = compare_sweeps([sweep], "clo-v2", "blo", where={"cycle_length": "4"}, objectives=AT_2)
    assert not isinstance(narrowed.at_speed_ups[0][1], str), "what was lost is of C=2"
    for path in (sweep.path / "cells").iterdir():
        path.unlink()
    with pytest.warns(
        UserWarning, match="is missing.*; and [0-9]+ more; results computed from logits are without them"
    ):
        (found,) = compare_sweeps([sweep], "clo-v2", "blo", objectives=AT_2, epochs=True)
    assert "no finished run has readable validation logits; repair" in found.as_dict()["at_speed_ups"][0]["missing"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the same files
        print_comparisons([found])
        assert "No comparison at layer speed-up 2:" in str(comparison_page([found]))
    assert "no comparison at layer speed-up 2:" in capsys.readouterr().out


def test_a_model_with_one_exit_is_compared_all_the_same(tmp_path):
    sweep = scored_sweep(tmp_path / "s", ahead(0.1), exits=1)
    (found,) = compare_sweeps([sweep], "clo-v2", "blo", objectives=AT_2, epochs=True)
    assert found.at_speed_ups[0][1] == "a model with one exit has no curve, because its speed-up is fixed"
    assert "No patience curves: a model with one exit" in str(comparison_page([found]))


@contextlib.contextmanager
def driven(folder):
    """While a driver lives."""
    lease = Lease.take(folder.path)
    try:
        yield
    finally:
        lease.release()


def test_a_running_sweep_is_reported_and_errors_state_its_progress(tmp_path, capsys):
    def only_clo(values):
        return "" if values["algorithm"] == "blo" else "complete"

    no_blo = scored_sweep(tmp_path / "s", ahead(0.1), state=only_clo, status=None)
    begun = scored_sweep(tmp_path / "b", ahead(0.1), state=lambda v: "running", cells=lambda v: 2, status=None)
    none = scored_sweep(tmp_path / "n", ahead(0.1), state=lambda v: "running", cells=lambda v: 0, status="stopped")
    with (
        driven(no_blo),
        pytest.raises(ConfigError, match=r"'blo' has begun; .*; sweep s is still running, 4 of 6 configurations compl"),
    ):
        compare_sweeps([no_blo], "clo-v2", "blo")
    with pytest.raises(
        ConfigError, match=r"no pair that finished .*; sweep n was stopped, 0 of 6 configurations compl"
    ):
        compare_sweeps([none], "clo-v2", "blo")
    with driven(begun):
        (found,) = compare_sweeps([begun], "clo-v2", "blo", epochs=True)
        print_comparisons([found])
        assert "b is still running" in capsys.readouterr().out
        assert "The sweep is still running" in str(comparison_page([found]))
        assert found.as_dict()["running"] is True
        assert "Sweep b is still running, 0 of 6 configurations completed: the results are preliminary." in str(
            sweep_page(begun)
        )
    assert (len(found.scores.lines[0].cells), found.scores.lines[0].planned) == (2, 3)


def test_a_sweep_that_was_stopped_between_configurations_gets_a_warning(tmp_path):
    sweep = scored_sweep(
        tmp_path / "s", ahead(0.1), state=lambda v: "" if v["lr_theta"] == 1e-4 else "complete", status="stopped"
    )
    (found,) = compare_sweeps([sweep], "clo-v2", "blo")
    assert any("unfinished (3 of 6 configurations completed" in s for s in sentences(found.scores))
    (whole,) = compare_sweeps([scored_sweep(tmp_path / "w", ahead(0.1))], "clo-v2", "blo")
    assert not any("unfinished" in s for s in sentences(whole.scores))


# Several sweeps


@pytest.mark.slow
def test_tasks_count_once_each_however_many_sweeps_they_have(tmp_path):
    made = [("m1", "mrpc", 0.03), ("m2", "mrpc", 0.05), ("r", "rte", 0.10)]
    sweeps = [
        scored_sweep(
            tmp_path / name, ahead(by, noise=i), task=task, space={"lr_theta": [1e-5, 1e-4], "cycle_length": [4]}
        )
        for i, (name, task, by) in enumerate(made)
    ]
    found = compare_sweeps(sweeps, "clo-v2", "blo", objectives=AT_2, epochs=True)
    main, tuned, at_2 = across(found)
    each = {one.sweep: np.mean([line.difference.mean for line in one.scores.lines]) for one in found}
    assert main.sweeps == pytest.approx(each)
    assert main.tasks == pytest.approx({"mrpc": (each["m1"] + each["m2"]) / 2, "rte": each["r"]})
    values = list(main.tasks.values())
    assert main.difference.mean == pytest.approx(np.mean(values))
    assert main.difference.p == pytest.approx(corrected_t(values, 0.0).p)
    assert main.sign_flip_p == 0.5, "two tasks can't say more"
    assert (
        main.in_words()
        == "CLO-v2 and BLO: +7.10 points in validation score, 2 tasks: too few for an interval (at least 4)"
    )
    assert tuned.tasks["rte"] == pytest.approx(found[2].scores.tuned.difference.mean)
    assert at_2.tasks["rte"] == pytest.approx(found[2].at_speed_ups[0][1].lines[0].difference.mean)
    said = across_sentences([main, tuned, at_2])
    assert "note: 3 sweeps of 2 tasks; those of one task are averaged first" in said
    assert "note: with 2 tasks the sign-flip p can't be below 0.5" in said
    page = str(comparison_page(found))
    assert page.count("Mean over exits, and each exit</h2>") == 3
    assert ">Over tasks</h2>" in page


def test_a_sweep_is_known_by_its_folder_and_a_copy_by_its_runs(tmp_path):
    one = scored_sweep(tmp_path / "here" / "s", ahead(0.1))
    other = scored_sweep(tmp_path / "there" / "s", ahead(0.1, noise=1))
    found = compare_sweeps([one, other], "clo-v2", "blo")
    assert [f.sweep for f in found] == [str(one.path), str(other.path)], "two may share a name"
    assert len(across(found)[0].sweeps) == 2
    with pytest.raises(ConfigError, match="is named twice"):
        compare_sweeps([one, one], "clo-v2", "blo")
    shutil.copytree(one.path, tmp_path / "copy")
    with pytest.raises(ConfigError, match="s and copy hold the same runs of mrpc"):
        compare_sweeps([one, type(one)(tmp_path / "copy")], "clo-v2", "blo")


def test_one_task_alone_has_no_interval_over_tasks(tmp_path):
    sweeps = [scored_sweep(tmp_path / str(i), ahead(0.1, noise=i)) for i in range(2)]
    main = across(compare_sweeps(sweeps, "clo-v2", "blo"))[0]
    assert not main.difference.defined
    assert "1 task: too few for an interval" in main.in_words()
    assert main.as_dict()["difference"]["low"] is None


def test_a_may_be_in_one_sweep_and_b_in_another(tmp_path):
    clo = scored_sweep(tmp_path / "clo", ahead(0.1), algorithms=["clo-v2"])
    blo = scored_sweep(tmp_path / "blo", ahead(0.1), algorithms=["blo"], space={"lr_theta": [1e-5, 1e-4]})
    both = scored_sweep(tmp_path / "both", ahead(0.1))
    (joined,) = compare_sweeps([clo, blo], "clo-v2", "blo", objectives=AT_2, epochs=True)
    (whole,) = compare_sweeps([both], "clo-v2", "blo", objectives=AT_2)
    assert joined.sweep == "clo + blo"
    assert joined.scores.as_dict() == whole.scores.as_dict()
    assert joined.at_speed_ups[0][1].as_dict() == whole.at_speed_ups[0][1].as_dict(), "logits lie in two folders"
    assert across([joined]) == []
    assert "Learned weights over time" in str(comparison_page([joined]))


def test_what_two_joined_sweeps_have_beside_the_sides_is_in_nobodys_way(tmp_path):
    clo = scored_sweep(tmp_path / "clo", ahead(0.1), algorithms=["clo-v2", "slo"])
    space = {"lr_theta": [1e-5, 1e-4]}
    blo = scored_sweep(tmp_path / "blo", ahead(0.1), algorithms=["blo", "slo"], space=space)
    (joined,) = compare_sweeps([clo, blo], "clo-v2", "blo", objectives=AT_2)
    assert [len(side) for side in joined.scores.sides] == [4, 2]
    assert not isinstance(joined.at_speed_ups[0][1], str)
    more = scored_sweep(tmp_path / "more", ahead(0.1, noise=1), algorithms=["clo-v2"])
    with pytest.raises(ConfigError, match="clo and more share configurations"):
        compare_sweeps([clo, more, blo], "clo-v2", "blo")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"facts": {"folds": {"k": 3, "digest": "other"}}}, "clo and blo are sweeps of mrpc with different folds"),
        ({"facts": {"data_fingerprint": "other"}}, "with different data_fingerprint"),
        ({"seeds": 2}, "with different seeds"),
        ({"training": {"max_epochs": 9}}, "with different training"),
        ({"pooling": "mean"}, "with different model"),
        ({"backbone": "/is", "facts": {"backbone": {"name": "/is", "weights": "2"}}}, "with different backbone"),
        ({"task": "rte"}, "no common tasks: algorithm clo-v2 is in sweeps of mrpc, blo in sweeps of rte"),
    ],
)
def test_sweeps_that_differ_in_more_are_not_joined(tmp_path, change, message):
    clo = scored_sweep(tmp_path / "clo", ahead(0.1), algorithms=["clo-v2"])
    space = {"lr_theta": [1e-5, 1e-4]}
    blo = scored_sweep(tmp_path / "blo", ahead(0.1), algorithms=["blo"], space=space, **change)
    with pytest.raises(ConfigError, match=message):
        compare_sweeps([clo, blo], "clo-v2", "blo")


def test_sweeps_of_a_backbone_that_has_moved_are_joined(tmp_path):
    sweeps = [
        scored_sweep(
            tmp_path / name, ahead(0.1), algorithms=[name], space={"lr_theta": [1e-5, 1e-4]}, backbone=place,
            facts={"backbone": {"name": place, "weights": "1", "config": "2"}},
        )
        for name, place in (("slo", "/was"), ("blo", "/is"))
    ]  # fmt: skip
    (joined,) = compare_sweeps(sweeps, "slo", "blo")
    assert joined.sweep == "slo + blo"


def test_an_error_of_several_sweeps_names_its_sweep(tmp_path):
    good = scored_sweep(tmp_path / "good", ahead(0.1))
    bad = scored_sweep(tmp_path / "bad", ahead(0.1), task="rte", algorithms=["clo-v2"])
    with pytest.raises(ConfigError, match=r"^bad: algorithm: no configuration with 'blo' has begun"):
        compare_sweeps([good, bad], "clo-v2", "blo")


# The command


def test_the_command_takes_letters_and_refuses_two_values_of_an_option(tmp_path, cli):
    sweep = scored_sweep(tmp_path / "s", ahead(0.1))
    ran = cli("leebert-tune", "compare", sweep.path, "--option", "C", "--a", "2", "--b", "4", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["option"] == "cycle_length"
    sides = ("--a", "clo-v2", "--b", "blo")
    twice = cli("leebert-tune", "compare", sweep.path, *sides, "--where", "c=4", "--where", "C=2")
    assert twice.code == 1
    assert "cycle_length has a value already" in twice.err
    page = tmp_path / "p.html"
    narrowed = cli(
        "leebert-tune", "compare", sweep.path, *sides, "--where", "C=4", "--speed-up", "1.2345678", "--html", page,
        "--tracking-uri", f"sqlite:///{tmp_path}/none.db", "--experiment", "elsewhere", "--json",
    )  # fmt: skip
    assert narrowed.code == 0, narrowed.err
    (line,) = narrowed.json["lines"]
    assert [set(side) for side in zip(*line["paired"], strict=True)] == [set(side) for side in narrowed.json["sides"]]
    assert narrowed.json["at_speed_ups"][0]["speed_up"] == 1.2345678
    assert "not logged to MLflow" in narrowed.err
    assert page.is_file()
