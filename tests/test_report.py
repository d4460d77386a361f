"""The pages: what stands on them is escaped and drawn, and importance says what the scores say."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import html
import re
import shutil
import time

import numpy as np
import pytest
from browser import browser, chromium
from pages import outline
from scored_sweep import scored_sweep

from tune.analysis import charts, figures, importance
from tune.analysis.compare_sweeps import compare_sweeps, verdict_on
from tune.analysis.figures import by_epoch
from tune.analysis.html import HtmlPage
from tune.analysis.importance import TOGETHER, importances
from tune.analysis.labels import algorithm_label
from tune.analysis.overview import print_status
from tune.analysis.progress import BestSoFar, RunningConfiguration
from tune.analysis.report import _comparisons, _exits, sweep_page
from tune.analysis.stats import corrected_t
from tune.space import SweepSpec
from tune.store.folder import spec_of
from tune.store.history import Cell, Configuration, EpochScore
from tune.tracking.summary import pool_of, summaries

SPEC = {
    "task": "mrpc",
    "backbone": "x",
    "algorithms": ["clo-v2", "blo"],
    "space": {"lr_theta": [1e-5, 1e-4, 1e-3, 1e-2], "cycle_length": [2, 4], "batch_size": [8, 16]},
    "folds": 2,
}


@pytest.fixture(autouse=True)
def two_forests(monkeypatch):
    """Enough for a lowest and a highest share."""
    monkeypatch.setattr(importance, "FORESTS", 2)


def history(spec: SweepSpec, score, state="complete"):
    told = []
    for i, values in enumerate(spec.configurations()):
        cells = tuple(Cell(0, k, "finished", (EpochScore(0, score(values) + k / 1000),)) for k in range(2))
        told.append(Configuration(f"c{i}", values, state, cells))
    return tuple(told)


@pytest.mark.slow
def test_the_option_that_decides_is_the_important_one():
    spec = SweepSpec.model_validate(SPEC)
    found = importances(spec, history(spec, lambda v: 0.5 + 0.1 * np.log10(v["lr_theta"] / 1e-5)))
    assert {name: of.configurations for name, of in found.items()} == {TOGETHER: 24, "clo-v2": 16, "blo": 8}
    for name, of in found.items():
        shares = of.shares
        assert sum(share.fanova for share in shares.values()) <= 1 + 1e-9
        assert sum(share.ped_anova for share in shares.values()) == pytest.approx(1.0)
        assert all(share.low <= share.fanova <= share.high for share in shares.values())
        assert shares["lr_theta"].fanova > 0.9, name
        assert max(shares, key=lambda option: shares[option].ped_anova) == "lr_theta", name
    assert "cycle_length" in found["clo-v2"].shares
    assert "cycle_length" not in found["blo"].shares
    algorithms = importances(spec, history(spec, lambda v: 0.5 + 0.2 * (v["algorithm"] == "blo")))
    assert algorithms[TOGETHER].shares["algorithm"].fanova > 0.9
    assert algorithms.keys() == {TOGETHER}, "within an algorithm all scores are equal"


@pytest.mark.slow
def test_main_effects_omit_what_options_do_together():
    spec = SweepSpec.model_validate(SPEC)
    found = importances(spec, history(spec, lambda v: 0.5 + 0.1 * ((v["lr_theta"] > 5e-5) == (v["batch_size"] == 8))))
    assert sum(share.fanova for share in found[TOGETHER].shares.values()) < 0.6


def test_equal_means_of_unequal_cells_give_no_importance():
    spec = SweepSpec.model_validate(SPEC)
    told = []
    for i, c in enumerate(history(spec, lambda v: 0.5)):
        shift = 0.01 * i
        cells = [dataclasses.replace(c.cells[k], epochs=(EpochScore(0, 0.5 + (-1) ** k * shift),)) for k in range(2)]
        told.append(dataclasses.replace(c, cells=tuple(cells)))
    assert len({c.scores for c in told}) > 1
    assert importances(spec, tuple(told)) == {}


def test_what_is_searched_on_a_log_scale_is_seen_on_it():
    wide = {**SPEC, "algorithms": ["blo"], "searcher": {"name": "random", "configurations": 40}}
    spec = SweepSpec.model_validate({**wide, "space": {"lr_theta": {"log_range": [1e-7, 1.0]}, "batch_size": [8, 16]}})
    rng = np.random.default_rng(0)
    told = []
    for i, log in enumerate(rng.uniform(-7, 0, 40)):
        values = {"algorithm": "blo", "lr_theta": float(10**log), "batch_size": (8, 16)[i % 2]}
        score = 0.5 + 0.1 * float(log < -3.5) + 0.1 * (i % 2)
        cells = tuple(Cell(0, k, "finished", (EpochScore(0, score),)) for k in range(2))
        told.append(Configuration(f"c{i}", values, "complete", cells))
    shares = importances(spec, tuple(told))["blo"].shares
    # On a plain scale nearly all of the range lies above the step, so that the rate would explain nothing.
    assert 0.3 < shares["lr_theta"].fanova < 0.7
    assert 0.3 < shares["lr_theta"].ped_anova < 0.7


@pytest.mark.parametrize(
    ("state", "space"), [("pruned", {}), ("complete", {"lr_theta": [1e-5], "cycle_length": [2, 4]})]
)
def test_what_is_unfinished_or_too_little_gives_no_importance(state, space):
    spec = SweepSpec.model_validate({**SPEC, "space": space or SPEC["space"]})
    assert importances(spec, history(spec, lambda v: v["lr_theta"] + v.get("cycle_length", 0) / 10, state=state)) == {}


def ramps(*names: str) -> dict[str, figures.Band]:
    ramp = np.arange(1, 4)
    return {name: (ramp, ramp, ramp - 1, ramp + 1) for name in names}


def test_a_page_escapes_text_and_carries_all_that_it_needs(tmp_path):
    page = HtmlPage("<script>")
    page.heading("a & b")
    page.text("<img src=x>")
    page.table([("x", "y"), ("<b>", 1)])
    page.figure((charts.bands(ramps("</script><b>"), "x", "y", ["#123456"]), '"quoted"'))
    text = page.write(tmp_path / "new" / "page.html").read_text()
    assert "<title>&lt;script&gt;</title>" in text
    assert '<a href="#part-0">a &amp; b</a>' in text, "a table of contents"
    assert "<img src=x>" not in text
    assert "<td>&lt;b&gt;</td><td>1</td>" in text
    assert text.count("</script>") == 3
    own, _ = text.split('<script type="text/plain" id="library">')
    assert "#123456" in own
    assert not re.search(r"""<link|<[a-z][^>]*(?:src|href)=(?!["']#)|url\(|@import""", text), "nothing is loaded"
    packed = re.search(r'id="library">([^<]+)<', text)
    assert packed is not None
    assert b"plotly.js" in gzip.decompress(base64.b64decode(packed[1]))[:100]
    assert str(page) == text, "equal numbers give equal files"


def test_weights_are_drawn_around_their_start_in_one_range():
    still, moved = np.full((3, 2), 1.01), np.full((3, 2), 4.0)
    assert charts.weight_range([still]) == (0.5, 1.5), "noise does not look like structure"
    assert charts.weight_range([still, moved]) == (0.5, 4.0)
    (trace,) = charts.heat_map("A", still, 0.0, 4.0).data
    assert (trace["zmin"], trace["zmax"]) == (0.0, 4.0)
    assert [at for at, _ in trace["colorscale"]] == [0, 0.125, 0.25, 0.625, 1], "the start has the middle colour"


@pytest.mark.parametrize("teachers", sorted(figures.TEACHERS))
def test_teachers_are_counted_as_the_loss_has_them(teachers):
    from leebert.losses import TEACHERS

    assert figures.TEACHERS[teachers](5).tolist() == TEACHERS[teachers](5).sum(dim=1).tolist()


@pytest.mark.slow
def test_a_browser_without_network_draws_a_page_in_either_scheme(tmp_path):
    """What is drawn, its colours by the reader's scheme, and that nothing else is asked for."""
    page = HtmlPage("t")
    page.figure((charts.bands(ramps("a", "b"), "x", "y", ["#2272b4", "#333333"]), "c"))
    path = page.write(tmp_path / "page.html")
    seen = """({drawn: document.documentElement?.dataset.drawn || '',
        colours: [...document.querySelectorAll('.scatterlayer path.js-line')].map(p => p.style.stroke),
        back: document.body && getComputedStyle(document.body).backgroundColor,
        fetched: performance.getEntriesByType('resource').map(r => r.name).filter(name => !name.startsWith('blob:'))})"""
    colours = {}
    with browser(chromium()) as window:
        window.call("Network.enable")
        offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        window.call("Network.emulateNetworkConditions", **offline)
        for scheme in ("light", "dark"):
            window.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            window.open(path.as_uri())
            deadline = time.monotonic() + 60
            while not (now := window.evaluate(seen))["drawn"] and time.monotonic() < deadline:
                time.sleep(0.1)
            assert now["drawn"] == "1"
            assert now["fetched"] == []
            colours[scheme] = now["colours"], now["back"]
    assert "rgb(34, 114, 180)" in colours["light"][0]
    assert "rgb(51, 51, 51)" in colours["light"][0]
    assert "rgb(51, 51, 51)" not in colours["dark"][0], "too dark for its background"
    assert colours["light"][1] != colours["dark"][1]


# A whole sweep's page


def told(page: HtmlPage) -> str:
    """The page's text, without its charts."""
    return html.unescape(str(page).split('<script type="application/json"')[0])


def score_of(values, seed, fold):
    rng = np.random.default_rng([seed, fold, int(1e6 * values["lr_theta"]), values.get("cycle_length", 0)])
    return 0.7 + 0.1 * (values["algorithm"] == "clo-v2") + 0.01 * float(rng.normal())


@pytest.mark.usefixtures("undrawn")
def test_a_report_states_what_comparisons_rest_on_and_how_many_there_are(tmp_path):
    def state(values):
        if values["algorithm"] == "blo" and values["lr_theta"] == 1e-4:
            return "pruned"
        if values["lr_theta"] == 1e-2:
            return ""
        return "failed" if values.get("cycle_length") == 4 and values["lr_theta"] == 1e-5 else "complete"

    sweep = scored_sweep(
        tmp_path / "s", score_of, state=state, cells=lambda v: 3 if state(v) == "complete" else 1, status="stopped",
        space={"lr_theta": [1e-5, 1e-4, 1e-3, 1e-2], "cycle_length": [2, 4]},
    )  # fmt: skip
    text = told(sweep_page(sweep))
    assert "Sweep s was stopped, 7 of 12 configurations completed: the results are preliminary." in text
    assert "<td>2, 1 dropped (1 pruned)</td>" in text
    assert "<td>1, 2 dropped (1 failed, 1 pruned)</td>" in text
    assert text.count("Warning: this sweep was pruned (1 configuration(s)") == 1
    assert text.count("Warning: this sweep is unfinished (7 of 12 configurations completed") == 1
    assert "This page holds 16 tests at the 5 % level" in text, (
        "two values of C, both together, and tuned, at all layers and at three speed-ups"
    )
    assert "about 0.8 of them" in text
    assert "pruned at epoch 2 of seed 0 fold 0" in text
    assert "<td>crash</td><td></td>" in text, "a failure that left no message"
    assert "<td>None</td>" not in text, "what is unfinished has no layers yet"


@pytest.mark.usefixtures("undrawn")
def test_a_report_shows_each_algorithm_with_intervals(tmp_path):
    sweep = scored_sweep(tmp_path / "s", score_of)
    page = sweep_page(sweep)
    assert outline(page) == {
        "": "verdict, 2 figures, 2 text",
        "Best": "3 text, table, 2 text, table",
        "Score against mean exit layer": "figure, table",
        "Learning curves": "figure",
        "Exits of each method": "figure, table, text",
        "Patience": "2 figures, 2 text",
        "Learned weights over time": "2 figures, text",
        "Importance": "text",
        "Paired comparisons of methods": "table, 4 text",
        "All configurations, best first": "table, text",
        "Search space": "table",
    }
    text = told(page)
    assert "Too few runs for intervals." in text
    assert "2 other configurations are within one standard error of it." in text
    assert "Against the majority class: 6 of 6 completed configurations" in text
    assert "Layers needed: 2.50" in text
    mine = [c for c in sweep.ledger.read().history() if c.values["algorithm"] == "clo-v2"]
    for exit in range(3):
        cells = [float(np.mean([c.cells[k].best.exits[exit] for c in mine])) for k in range(3)]
        assert f"<td>{100 * np.mean(cells):.2f}</td>" in text, "three runs are too few for an interval"
    assert "The best configurations: CLO-v2 λ1=" in text
    assert "; BLO λ1=" in text
    assert "<td>layer speed-up 2</td>" in text


@pytest.mark.usefixtures("undrawn")
def test_a_report_of_cells_whose_logits_are_gone_reports_it(tmp_path):
    sweep = scored_sweep(tmp_path / "s", score_of)
    shutil.rmtree(sweep.path / "cells")
    with pytest.warns(UserWarning, match="is missing.*--repair"):
        text = told(sweep_page(sweep))
    assert "No patience curves:" in text
    assert "no comparison at layer speed-up 2:" in text
    assert "tuned CLO-v2" in text, "what needs no logits stands all the same"


def test_a_mean_over_cells_ends_where_the_first_cell_ends():
    cells = [{0: {"score": 0.1}, 1: {"score": 0.2}}, {0: {"score": 0.5}, 1: {"score": 0.6}, 2: {"score": 0.9}}]
    assert by_epoch(cells, lambda record: record["score"]) == pytest.approx([0.3, 0.4])


# The status of a sweep on the console


RUNS = [
    dataclasses.asdict(one)
    for one in (
        RunningConfiguration(3, "CLO-v2 C=4", 2, 6, 0, 1, 2, 10, 0.812, 20.0, 70.0),
        RunningConfiguration(4, "BLO", 1, 6, 0, 0, 0, 10, None, None, None, queued=True),
    )
]
BEST = dataclasses.asdict(BestSoFar("BLO", 0.831, 6, 6, "+1.00 points, 95 % CI 0.50 to 1.50"))


@pytest.mark.parametrize(
    ("unfinished", "lines"),
    [
        (
            {"planned_configurations": 4, "cells_left": 2, "hours_left": 0.5, "runs": RUNS, "best": BEST},
            [
                "configurations: 2 complete, of 4 planned",
                "runs: 6 finished, 2 remaining; 12 fold-epochs",
                "about 30 min remaining",
                "running: [3] CLO-v2 C=4: run 2 of 6 (seed 0, fold 1), epoch 3 of 10, score 81.20, 20 s so far, about 1 min 10 s left",
                "queued: [4] BLO: waits for a free CPU or GPU",
                "best so far: BLO: 83.10 (6 runs); over the majority class: +1.00 points, 95 % CI 0.50 to 1.50",
            ],
        ),
        ({"note": "a note"}, ["configurations: 2 complete", "runs: 6 finished; 12 fold-epochs"]),
    ],
)
def test_a_status_counts_what_is_finished_and_what_remains_where_that_is_clear(capsys, unfinished, lines):
    status = {
        "sweep": "s", "task": "mrpc", "state": "running", "note": "", "configurations": {"complete": 2, "failed": 0},
        "planned_configurations": None, "cells_left": None, "cells_done": 6, "fold_epochs": 12, "hours_left": None,
        "running": [], "queued": [], "runs": [], "best": None,
    }  # fmt: skip
    print_status({**status, **unfinished})
    first = "s (mrpc): running" + (", a note" if "note" in unfinished else "")
    assert capsys.readouterr().out.splitlines() == [first, *lines]


# Summaries for MLflow


def test_summaries_pair_all_algorithms_and_only_what_is_complete(tmp_path):
    def state(values):
        return "running" if values["algorithm"] == "slo" and values["lr_theta"] == 1e-4 else "complete"

    sweep = scored_sweep(
        tmp_path / "s", score_of, state=state, cells=lambda v: 3 if state(v) == "complete" else 2, status=None,
        algorithms=["uniform", "slo", "blo"], space={"lr_theta": [1e-5, 1e-4]},
    )  # fmt: skip
    found = {one.label: one for one in summaries(pool_of(sweep, spec_of(sweep), sweep.ledger.read())).events}
    pairs = ["BLO minus SLO", "BLO minus Uniform", "SLO minus Uniform"]
    assert list(found) == ["BLO", "SLO", "Uniform", *pairs]
    assert [found[label].metrics["paired/pairs"] for label in pairs] == [1.0, 2.0, 1.0]
    note = found["BLO minus SLO"].note
    assert "complete pairs of configurations: 1; dropped: 1 (1 unfinished)" in note
    assert "Warning: this sweep is unfinished (5 configurations completed" in note
    history = {(c.values["algorithm"], c.values["lr_theta"]): c for c in sweep.ledger.read().history()}
    difference = np.mean(history["blo", 1e-5].scores) - np.mean(history["slo", 1e-5].scores)
    assert found["BLO minus SLO"].metrics["paired/diff_pct"] == pytest.approx(100 * difference, abs=1e-3)


@pytest.mark.slow
def test_one_difference_has_one_interval_and_one_verdict_in_mlflow_report_and_compare(tmp_path):
    """CLO-v2 and BLO are compared though CLO-v1 is listed between them."""

    def score(values, seed, fold):
        rng = np.random.default_rng([seed, fold, len(values["algorithm"]), values["algorithm"] == "clo-v1"])
        return 0.7 + 0.1 * float(rng.normal())

    sweep = scored_sweep(
        tmp_path / "s", score, seeds=[0, 1], algorithms=["clo-v2", "clo-v1", "blo"],
        space={"lr_theta": [1e-4], "cycle_length": [2]},
    )  # fmt: skip
    pool = pool_of(sweep, spec_of(sweep), sweep.ledger.read())
    made, verdict = summaries(pool), verdict_on(sweep)
    assert made.sentence == verdict.sentence
    assert {verdict.a.value, verdict.b.value} == {"clo-v2", "blo"}
    reported = _comparisons(pool, {})
    (side,) = (c for c in pool.state.history() if c.values["algorithm"] == "blo")
    of_exit = corrected_t([cell.best.exits[0] for cell in side.cells], 1 / 2)
    low, mean, high = (f"{100 * value:.2f}" for value in (of_exit.low, of_exit.mean, of_exit.high))
    assert _exits({"BLO": (side,)}, pool)[1] == ("1", f"{mean} ({low} to {high})")
    found = {one.label: one for one in made.events}
    for a, b in (("clo-v2", "blo"), ("clo-v2", "clo-v1"), ("clo-v1", "blo")):
        (compared,) = compare_sweeps([sweep], a, b)
        low = compared.scores.overall.difference.low
        assert reported[a, b].scores.overall.difference.low == low
        label = next(name for name in found if name.startswith(algorithm_label(a)) and algorithm_label(b) in name)
        assert found[label].metrics["paired/diff_pct_low"] == pytest.approx(100 * low, abs=1e-3)
