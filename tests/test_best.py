"""`leebert-tune best` on sweeps of made-up scores and logits: who may be chosen, what is said, what the file holds."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_sweep import EXITS, FOLDS, made_sweep
from recorded import drawn

from leebert.evaluate import RecordedLogits
from leebert.majority import against_majority
from leebert.milliseconds import ExitMilliseconds
from leebert.yaml import load_yaml
from tune.analysis import overview, tradeoff
from tune.analysis.choose import choose_each
from tune.analysis.compare_sweeps import compare_sweeps
from tune.analysis.report import sweep_page
from tune.analysis.tradeoff import RankingObjective, Tradeoff
from tune.store.folder import SweepFolder, spec_of
from tune.store.history import Cell, Configuration, EpochScore
from tune.store.lease import Lease
from tune.store.ranking import best
from tune.tracking.feed import config_ended

SMALL = {"lr_theta": [1e-5, 1e-4], "lr_omega": [1e-3], "cycle_length": [2], "batch_size": [16]}
PLANNED = 4


def logits(index: int, fold: int, settled: int = 1) -> RecordedLogits:
    """Exits agree from exit `settled` on: before it, neighbours contradict each other, so that patience runs out late."""
    rng = np.random.default_rng([index, fold])
    labels = rng.integers(2, size=60)
    right = rng.random((EXITS, 60)) < np.linspace(0.75, 0.9, EXITS)[:, None]
    right[settled - 1 :] = right[settled - 1]
    said = np.where(right, labels, 1 - labels)
    for exit_ in range(settled - 2, -1, -1):
        said[exit_] = 1 - said[exit_ + 1]
    strength = rng.uniform(0.5, 3, (EXITS, 60))
    return RecordedLogits((np.eye(2)[said] * strength[..., None]).astype(np.float32), labels)


@pytest.fixture
def sweep(tmp_path: Path) -> Callable[..., SweepFolder]:
    """A sweep of four planned configurations, of which the last is pruned."""

    def make(name: str, held_out: Callable[[int, int], RecordedLogits] | None = logits, **change: Any) -> SweepFolder:
        return made_sweep(tmp_path / name, "sqlite:///nowhere.db", **{"held_out": held_out, "space": SMALL, **change})

    return make


@pytest.fixture
def choose(cli: Any, tmp_path: Path) -> Callable[..., Any]:
    """The command on these sweeps."""
    return lambda *names, **how: cli(
        "leebert-tune", "best", *names, "--storage", tmp_path, "--out", tmp_path / "best", *how.get("more", ())
    )


def found_in(tmp_path: Path, task: str = "mrpc") -> dict[str, Any]:
    found: dict[str, Any] = load_yaml(tmp_path / "best" / f"{task}.yaml")["found"]
    return found


def test_it_compares_learned_with_uniform_weights(sweep, choose, tmp_path):
    sweep("learned", algorithms=["uniform", "clo-v2", "hyper-v2"])
    said = choose("learned").out
    answer = found_in(tmp_path)["learned_weights"]
    assert answer["conclusion"] in said
    assert answer["methods"][0]["method"] == "clo-v2"


def test_the_file_has_equals_and_front_with_values_scores_layers_and_criterion(sweep, choose, tmp_path):
    whole = sweep("whole")
    ran = choose("whole", more=("--criterion", "confidence", "--json"))
    assert ran.code == 0, ran.err
    found = found_in(tmp_path)
    assert found == ran.json["found"]
    written = load_yaml(tmp_path / "best" / "mrpc.yaml")
    assert not {"exits", "aim"} & written.keys(), "defaults that nobody chose"
    history = {c.id: c for c in whole.ledger.read().history()}
    assert found["complete_configurations"] == PLANNED - 1
    near = found["within_one_standard_error"]
    assert near[0]["configuration"] == found["configuration"]
    assert near[0]["score"] == found["score_mean"] == found["objective"]["value"]
    assert "criterion" not in found["objective"], "a mean over exits has none"
    assert found["pareto"]["criterion"] == "confidence"
    for one in (*near, *found["pareto"]["points"]):
        assert one["values"] == history[one["configuration"]].values
        assert 1 <= one["layers"] <= EXITS
        assert 0 < one["score"] < 1
    printed = choose("whole", more=("--criterion", "confidence"))
    assert "layers: where a configuration's part of the front begins, under confidence" in printed.out
    assert f"{100 * found['pareto']['points'][0]['score']:.2f}" in printed.out
    assert f"the best of {PLANNED - 1} completed configurations of sweep whole:" in printed.out
    assert "running" not in printed.out + (tmp_path / "best" / "mrpc.yaml").read_text()
    by_area = choose("whole", more=("--objective", "area", "--criterion", "patience", "--json"))
    assert by_area.json["found"]["objective"]["criterion"] == by_area.json["found"]["pareto"]["criterion"] == "patience"


@pytest.mark.parametrize("state", ["running", "died"])
def test_a_sweep_that_is_not_finished_is_reported_in_the_output_and_in_the_file(state, sweep, choose, tmp_path):
    folder = sweep("early", configs=3, end=False)
    lease = Lease.take(folder.path) if state == "running" else None
    try:
        ran = choose("early")
    finally:
        if lease is not None:
            lease.release()
    assert ran.code == 0, ran.err
    words = "is still running" if state == "running" else "has died"
    line = f"sweep early {words}: 2 of {PLANNED} planned configurations completed"
    assert line in ran.out.splitlines()
    assert f"# {line}\n" in (tmp_path / "best" / "mrpc.yaml").read_text()
    told = found_in(tmp_path)["sweeps"]["early"]
    assert (told["status"], told["complete"], told["planned"]) == (state, 2, PLANNED)


def test_a_configuration_with_a_diverged_cell_is_not_counted(sweep, choose, tmp_path):
    sweep("partly", diverged=[(0, 1)])
    ran = choose("partly")
    assert ran.code == 0, ran.err
    assert "the best of 2 completed configurations of sweep partly" in ran.out
    assert "# The best of 2 completed configurations" in (tmp_path / "best" / "mrpc.yaml").read_text()
    assert found_in(tmp_path)["complete_configurations"] == 2


def test_who_cannot_reach_a_speed_up_is_omitted_and_counted(sweep, choose, tmp_path):
    sweep("mixed", lambda index, fold: logits(index, fold, settled=5 if index == 1 else 1))
    rule = ("--criterion", "patience")
    ran = choose("mixed", more=("--objective", "speed-up=2", *rule))
    assert ran.code == 0, ran.err
    assert "1 of 3 completed configurations can't reach layer speed-up 2 under patience and are excluded" in ran.out
    assert "the best of 2 completed configurations that reach layer speed-up 2 of sweep mixed" in ran.out
    (slow,) = found_in(tmp_path)["too_slow"]
    state = SweepFolder(tmp_path / "mixed").ledger.read()
    assert state.indices[slow["configuration"]] == 1
    assert found_in(tmp_path)["configuration"] != slow["configuration"]
    none = choose("mixed", more=("--objective", "speed-up=5.5", *rule))
    assert none.code == 1
    assert "sweep mixed: layer speed-up 5.5: none of 3 completed configurations reaches it" in none.err
    assert "the nearest, CLO-v2 λ1=1e-05, reaches" in none.err


def test_an_unfinished_sweep_does_not_deny_other_tasks_their_files(sweep, choose, tmp_path):
    sweep("good")
    sweep("early", task="rte", configs=1)
    sweep("damaged", task="sst2")
    (tmp_path / "damaged" / "manifest.json").write_text("{")
    ran = choose("early", "damaged", "good")
    assert ran.code == 1
    assert (tmp_path / "best" / "mrpc.yaml").exists()
    assert not (tmp_path / "best" / "rte.yaml").exists()
    errors = ran.err.splitlines()
    assert (
        "error: sweep early: no configuration has finished all its runs yet: 0 unfinished, 1 pruned, 0 failed" in errors
    )
    assert any(line.startswith("error: sweep damaged: ") for line in errors)
    twice = choose("good", "good")
    assert (twice.code, "named twice" in twice.err) == (1, True)


@pytest.mark.slow
def test_the_equals_and_the_front_are_those_of_all_sweeps_of_a_task(sweep, choose, tmp_path):
    one, two = sweep("one"), sweep("two", lambda index, fold: logits(index, fold, settled=4))
    early = sweep("early", configs=1, end=False)
    ran = choose("one", "two", "early", more=("--json",))
    assert ran.code == 0, ran.err
    found = ran.json["found"]
    assert found["complete_configurations"] == 2 * (PLANNED - 1)
    assert {sweep: told["complete"] for sweep, told in found["sweeps"].items()} == {"one": 3, "two": 3, "early": 0}
    near = found["within_one_standard_error"]
    by_sweep = [{n["configuration"] for n in near if n["sweep"] == name} for name in ("one", "two")]
    assert by_sweep[0] == by_sweep[1] != set(), "their scores are the same"
    objective, points = RankingObjective(), []
    for folder in (one, two):
        (choice,), _ = choose_each([folder], objective)
        points += [(p.layers, p.score) for p in choice.front]
    best_at = {x: max(y for at, y in points if at <= x) for x, _ in points}
    for point in found["pareto"]["points"]:
        assert point["score"] == pytest.approx(best_at[point["layers"]], abs=1e-6)
    assert {p["sweep"] for p in found["pareto"]["points"]} == {"one", "two"}
    printed = choose("one", "two", early.name).out
    assert "sweep early has died: 0 of 4 planned configurations completed" in printed
    assert "sweep early: no candidate" in printed


def test_sweeps_that_score_by_different_metrics_are_not_compared(sweep, choose, tmp_path):
    sweep("one")
    manifest = sweep("other").path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"accuracy"', '"matthews"'))
    ran = choose("one", "other")
    assert ran.code == 1
    assert ran.err == (
        "error: sweeps one, other: one and other are sweeps of mrpc with different metric: their scores can't be compared\n"
    )


def test_a_large_sweep_reports_that_it_has_no_front_and_how_to_get_it(sweep, choose, tmp_path, monkeypatch):
    monkeypatch.setattr("tune.analysis.choose.FRONT_CELLS", 3 * FOLDS - 1)
    sweep("large")
    ran = choose("large")
    assert ran.code == 0, ran.err
    assert f"computing it replays the validation logits of {3 * FOLDS} runs; add --pareto to do so" in ran.out
    assert "pareto" not in found_in(tmp_path)
    asked = choose("large", more=("--pareto",))
    assert asked.code == 0, asked.err
    assert found_in(tmp_path)["pareto"]["points"]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped", "swapped"])
def test_damaged_logits_are_named_with_their_cell_and_omitted(damage, sweep, choose, tmp_path):
    folder = sweep("damaged")
    (chosen, *_), _ = choose_each([folder], RankingObjective())
    (record, *_) = chosen.best.records
    path = folder.path / "cells" / record["held_out"]
    whole = choose("damaged", more=("--objective", "area", "--json")).json["found"]
    data = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(data[:300])
    elif damage == "flipped":
        path.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
    elif damage == "swapped":
        other = next(p for p in path.parent.iterdir() if p != path)
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
    else:
        path.unlink()
    cell = f"configuration {record['config']}, seed 0, fold 0"
    said = "is missing" if damage == "missing" else "is not the file that the ledger records (SHA-256 "
    ran = choose("damaged", more=("--objective", "area", "--json"))
    assert ran.code == 0, ran.err
    assert f"{cell}: {path} {said}" in ran.err
    assert f"leebert-tune resume {folder.path} --repair" in ran.err
    assert "not ranked, as validation logits of a run are missing or damaged: " in ran.err
    assert ran.json["found"]["configuration"] != record["config"]
    assert ran.json["found"]["complete_configurations"] < whole["complete_configurations"]
    without = choose("damaged")
    assert without.code == 0, without.err
    assert f"warning: {cell}: {path} {said}" in without.err
    assert "thresholds can't be chosen" in without.err
    found = found_in(tmp_path)
    assert found["configuration"] == record["config"]  # its score is known without the logits
    assert "held_out" not in found
    assert record["config"] not in {point["configuration"] for point in found["pareto"]["points"]}


def test_without_the_logits_of_any_configuration_there_is_a_best_by_score_only(sweep, choose, tmp_path):
    folder = sweep("bare")
    for path in (folder.path / "cells").glob("*-f0-*"):
        path.unlink()
    ran = choose("bare")
    assert ran.code == 0, ran.err
    assert (
        "no Pareto front of score against mean exit layer: every completed configuration has a run whose validation"
        in ran.out
    )
    for more in (("--pareto",), ("--objective", "speed-up=2")):
        ran = choose("bare", more=more)
        assert ran.code == 1
        assert (
            "error: sweep bare: every completed configuration has a run whose validation logits are missing" in ran.err
        )


def one(name: str, layers: list[float], scores: list[float], first: float) -> tuple[Configuration, Tradeoff]:
    configuration = Configuration(name, {}, "complete", (Cell(0, 0, "finished", (EpochScore(0, 0.5),)),))
    return configuration, drawn("patience", layers, scores, EXITS, first)


def test_an_area_rewards_nobody_for_leaving_late():
    a, of_a = one("a", [2, 4, 6], [0.70, 0.80, 0.84], 0.60)
    b, of_b = one("b", [4.5, 5, 6], [0.79, 0.80, 0.82], 0.60)
    found = {("a", 0, 0): of_a, ("b", 0, 0): of_b}
    assert best(RankingObjective.of("area", "patience").rescored((a, b), found)).id == "a"
    assert of_a.area() == pytest.approx((0.65 * 1 + 0.75 * 2 + 0.82 * 2) / 5)
    assert of_b.area() == pytest.approx((0.695 * 3.5 + 0.795 * 0.5 + 0.81 * 1) / 5)


def test_by_area_under_patience_the_command_agrees_with_the_curves(sweep, choose, tmp_path):
    folder = sweep("late", lambda index, fold: logits(index, fold, settled=1 + index))
    ran = choose("late", more=("--objective", "area", "--criterion", "patience", "--json"))
    assert ran.code == 0, ran.err
    state = folder.ledger.read()
    means = {
        config: np.mean([
            tradeoff.tradeoff(logits(index, k, settled=1 + index), "accuracy", "patience").area() for k in range(FOLDS)
        ])
        for config, index in state.indices.items() if index < PLANNED - 1
    }  # fmt: skip
    assert ran.json["found"]["configuration"] == max(means, key=lambda c: means[c])
    assert ran.json["found"]["objective"]["value"] == pytest.approx(max(means.values()), abs=1e-6)


# What is not significantly above the majority class.


def against(index: int, fold: int) -> RecordedLogits:
    """The first and the second configuration have collapsed, the third has learned (80 % right)."""
    rng = np.random.default_rng([index, fold])
    labels = (np.arange(100) < 68).astype(int)
    right = rng.random((EXITS, 100)) < (0.9 if index == 2 else 0)
    said = np.where(right, labels, 1 - labels) if index == 2 else np.ones((EXITS, 100), int)
    return RecordedLogits(np.eye(2, dtype=np.float32)[said], labels)


def collapsed_on_top(values: dict[str, Any], fold: int) -> dict[str, Any]:
    score = 0.7366 if (values["algorithm"], values["lr_theta"]) == ("clo-v2", 1e-4) else 0.7405
    return {"score": score, "exits": {"score": [score] * EXITS}}


def recorded(values: dict[str, Any], fold: int) -> dict[str, Any]:
    """As `against`, in the record of the cell's end."""
    index = [("clo-v2", 1e-5), ("blo", 1e-5), ("clo-v2", 1e-4), ("blo", 1e-4)].index(
        (values["algorithm"], values["lr_theta"])
    )
    found = against_majority(against(index, fold).logits, against(index, fold).labels, "accuracy")
    assert found is not None
    return {**collapsed_on_top(values, fold), "majority": found.as_dict()}


@pytest.mark.parametrize("old", [False, True], ids=["recorded", "older ledger"])
def test_a_learned_configuration_is_chosen_over_collapsed_ones_that_score_higher(old, sweep, choose, tmp_path):
    # What is recorded counts; of an older ledger the logits, which in the other case would call all of them learned.
    sweep("mrpc", **({"held_out": against, "ends": collapsed_on_top} if old else {"ends": recorded}))
    ran = choose("mrpc")
    assert ran.code == 0, ran.err
    found = found_in(tmp_path)
    assert (found["values"]["algorithm"], found["values"]["lr_theta"]) == ("clo-v2", 1e-4)
    assert found["score_mean"] == 0.7366
    assert found["majority"]["verdict"] == "learned"
    assert found["majority"]["low"] > 0.1
    assert [(one["score"], one["verdict"]) for one in found["not_distinguishable"]] == [(0.7405, "collapsed")] * 2
    assert "2 of 3 completed configurations are not significantly above the majority class and are excluded" in ran.out
    assert "the best of 1 completed configurations that are better than the majority class of sweep mrpc" in ran.out
    assert re.search(r"against the majority class \(68.00\): \+2\d.\d\d points, 95 % CI 1\d.\d\d to 2\d.\d\d", ran.out)
    anyway = choose("mrpc", more=("--anyway",))
    assert anyway.code == 0, anyway.err
    forced = found_in(tmp_path)
    assert (forced["score_mean"], forced["majority"]["verdict"]) == (0.7405, "collapsed")
    assert "not_distinguishable" not in forced
    line = "not significantly above the majority class (68.00): every exit predicts a single class in every run; try more epochs"
    assert line in anyway.out
    assert line in (tmp_path / "best" / "mrpc.yaml").read_text()


def test_where_none_has_learned_nothing_is_written_without_anyway(sweep, choose, tmp_path):
    sweep("stuck", held_out=lambda index, fold: against(0, fold), ends=collapsed_on_top)
    ran = choose("stuck")
    assert (ran.code, (tmp_path / "best").exists()) == (1, False)
    assert ran.err.startswith(
        "error: sweep stuck: none of 3 completed configurations is significantly above the majority class, which scores 68.00 (3 of "
        "them predict a single class at every exit); try more epochs (max_epochs), a larger λ1 (lr_theta), or another pooling; "
    )
    assert "--anyway" in ran.err
    assert choose("stuck", more=("--anyway",)).code == 0
    assert found_in(tmp_path)["majority"]["collapsed_cells"] == FOLDS


def test_without_records_and_logits_nothing_is_claimed(sweep, choose, tmp_path):
    for path in (sweep("unknown").path / "cells").iterdir():
        path.unlink()
    ran = choose("unknown")
    assert ran.code == 0, ran.err
    assert "majority" not in found_in(tmp_path)
    assert "majority class" not in ran.out


def test_a_sweep_ends_with_the_verdict(sweep, capsys):
    folder = sweep("mrpc", held_out=None, ends=recorded)
    facts = overview.summary(folder, spec_of(folder), folder.ledger.read())
    assert [row["majority"] and row["majority"]["verdict"] for row in facts["configurations"]] == [
        "learned", "collapsed", "collapsed", None,
    ]  # fmt: skip
    state = folder.ledger.read()
    margins = [
        config_ended(row["configuration"], "complete", state).metrics["cv/margin"]
        for row in facts["configurations"][:3]
    ]
    assert margins == [pytest.approx(facts["configurations"][0]["majority"]["margin"], abs=1e-6), 0, 0]
    overview.print_table(facts)
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith(
        "1 of 3 completed configurations learned more than the majority class, which scores 68.00; the largest margin is +2"
    )
    assert last.endswith("; for the others, try more epochs (max_epochs), a larger λ1 (lr_theta), or another pooling")


@pytest.mark.usefixtures("undrawn")
def test_the_page_of_a_sweep_shows_the_learned_configuration_as_the_best(sweep):
    folder = sweep("mrpc", held_out=against, ends=collapsed_on_top, prune_last=False)
    text = re.sub(r"<[^>]*>", " ", str(sweep_page(folder)))
    assert "CLO-v2 λ1=0.0001: 73.66 over 3 runs" in text
    assert "Against the majority class: 1 of 4 completed configurations learned more" in text
    assert text.count("complete, collapsed") == 3


def test_compare_reports_layers_only_of_what_has_learned(sweep):
    (found,) = compare_sweeps([sweep("mrpc", held_out=None, ends=recorded)], "clo-v2", "blo")
    told = found.as_dict()
    assert list(told["layers"]) == ["clo-v2"]
    assert told["no_layers"] == "no completed configuration of BLO is significantly above the majority class"


# Within a time.


def times(milliseconds):
    return ExitMilliseconds(tuple(float(ms) for ms in milliseconds), tuple(range(1, EXITS + 1)), "PyTorch, made up")


@pytest.fixture
def timed(monkeypatch):
    """Networks of which one takes twice the time of the others; how often each was timed."""
    measured = []

    def one(sweep, training, criterion, patience):
        measured.append(repr(training))
        return times(np.arange(1, EXITS + 1) * (2 if len(measured) == 1 else 1))

    monkeypatch.setattr("tune.analysis.latency._measured", one)
    monkeypatch.setattr("tune.analysis.latency._structure", lambda sweep, training, networks: str(training.lr_theta))
    return measured


def test_the_best_within_a_time_is_not_the_best_within_as_many_layers(sweep, choose, tmp_path, timed):
    folder = sweep("timed")
    ran = choose("timed", more=("--objective", f"latency={EXITS}ms", "--criterion", "confidence", "--json"))
    assert ran.code == 0, ran.err
    found = found_in(tmp_path)
    history = folder.ledger.read().history()
    rates = {c.values["lr_theta"] for c in history if c.state == "complete"}
    assert len(timed) == len(rates), "each network is timed once"
    assert found["milliseconds"]["measured"] == "PyTorch, made up"
    assert found["objective"]["name"] == f"score at {EXITS} ms per sample under confidence"
    points = found["pareto"]["points"]
    assert [p["milliseconds"] for p in points] == sorted({p["milliseconds"] for p in points})
    assert [p["score"] for p in points] == sorted({p["score"] for p in points})
    for point in points:
        assert point["milliseconds"] / point["layers"] == pytest.approx(1, abs=0.01) or point["milliseconds"] / point[
            "layers"
        ] == pytest.approx(2, abs=0.01)
    # By hand: the mean over folds of the score at the layers that the time allows.
    values = {}
    state = folder.ledger.read()
    slow = next(c for c in history if c.state == "complete").values["lr_theta"]
    for c in history:
        if c.state == "complete":
            layers = EXITS / (2 if c.values["lr_theta"] == slow else 1)
            curves = [tradeoff.tradeoff(logits(state.indices[c.id], k), "accuracy", "confidence") for k in range(FOLDS)]
            values[c.id] = np.mean([np.interp(layers, *curve.drawn()) for curve in curves])
    assert found["objective"]["value"] == pytest.approx(max(values.values()), abs=2e-3)
    printed = choose("timed", more=("--objective", f"latency={EXITS}ms", "--criterion", "confidence"))
    assert "ms up to each exit, measured on this machine at batch size 1 in PyTorch, made up: " in printed.out
    assert "on the Pareto front of score against time" in printed.out


def test_tables_and_front_have_milliseconds_on_request(sweep, choose, tmp_path, timed):
    sweep("timed")
    assert choose("timed", more=("--pareto",)).code == 0
    plain = found_in(tmp_path)
    assert not timed
    ran = choose("timed", more=("--pareto", "--milliseconds"))
    assert ran.code == 0, ran.err
    found = found_in(tmp_path)
    assert found["configuration"] == plain["configuration"]
    points = found["pareto"]["points"]
    # The front is the same, against mean exit layer, and each of its points has a time.
    assert [{k: v for k, v in p.items() if k != "milliseconds"} for p in points] == plain["pareto"]["points"]
    assert all(p["milliseconds"] >= p["layers"] - 0.01 for p in points)
    assert "on the Pareto front of score against mean exit layer" in ran.out
    assert all("milliseconds" in one for one in found["within_one_standard_error"])


def test_a_time_that_no_configuration_reaches(sweep, choose, timed):
    sweep("slow")
    ran = choose("slow", more=("--objective", "latency=0.5ms"))
    assert ran.code == 1
    assert f"0.5 ms per sample: none of {PLANNED - 1} completed configurations reaches it in every run" in ran.err
    assert f"takes from 1 to {EXITS} ms" in ran.err
    assert choose("slow", more=("--objective", "latency=soon")).err.startswith(
        "error: --objective latency soon: should be milliseconds per sample above 0, such as 5ms"
    )


@pytest.mark.slow
def test_the_networks_of_a_real_sweep_are_timed_on_its_own_samples(best_place, cli, tmp_path):
    where = ("--storage", best_place.folder / "sweeps", "--out", tmp_path, "--anyway", "--json")
    ran = cli("leebert-tune", "best", "toy", "--objective", "latency=1000ms", *where)
    assert ran.code == 0, ran.err
    times = ran.json["found"]["milliseconds"]
    assert times["exits"] == sorted(times["exits"])
    assert len(times["exits"]) == len(times["layers"])
    assert re.fullmatch(r"ONNX Runtime fp32, .*, 1 thread\(s\), 20 samples of \d+ tokens on average", times["measured"])
    # Every configuration is fast enough, so the score is that of all layers.
    assert ran.json["found"]["objective"]["value"] == pytest.approx(ran.json["found"]["score_per_exit"][-1], abs=1e-5)
