"""Every place that tells layers tells the same: MLflow, best file, `best`, `report`, `compare`, evaluation, refit, calibration."""

from __future__ import annotations

import functools
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_sweep import FOLDS, made_sweep
from recorded import crowded, records

from leebert.evaluate import RecordedLogits
from leebert.exits import REPORTED
from leebert.report import evaluation
from leebert.thresholds import choose, curves, look_up
from leebert.tradeoff import ALLOWED_LOSS, layers_within, mean_curve, replay_point, tradeoff
from tune.analysis.choose import choose as choose_best
from tune.analysis.compare_sweeps import compare_pool
from tune.analysis.report import sweep_page
from tune.analysis.sweeps import LoadedSweep, SweepPool
from tune.analysis.tradeoff import RankingObjective
from tune.models.best_file import load_logits, pooled, save_logits
from tune.models.write_best import best_file, best_logits
from tune.store.curves import CellCurves
from tune.store.folder import SweepFolder
from tune.store.ranking import best
from tune.tracking.events import ConfigEnded
from tune.tracking.feed import replay

pytestmark = pytest.mark.usefixtures("undrawn")

#: Two configurations, CLO-v2's and BLO's, and a third that is pruned.
SPACE = {"lr_theta": [1e-5], "lr_omega": [1e-4], "cycle_length": [2], "batch_size": [16, 32]}


def told_to_mlflow(folder: SweepFolder, say=print) -> dict[str, ConfigEnded]:
    """What MLflow hears of each completed configuration, by its id."""
    heard: list = []
    listener = type("Heard", (), {"put": lambda self, event: heard.append(event)})()
    replay(folder.ledger, listener, CellCurves(folder.path, say))
    return {e.config_id: e for e in heard if isinstance(e, ConfigEnded) and e.status == "complete"}


def best_of(folder: SweepFolder) -> dict:
    return best_file(choose_best([LoadedSweep.read(folder)], RankingObjective(), anyway=True))["found"]


def crowded_cell(index: int, fold: int) -> RecordedLogits:
    """Of every second configuration fewer samples are wrong at first, so that it needs fewer layers."""
    return crowded(6 + 0.1 * fold, 20 if index % 2 else 4)


@functools.cache
def true_layers(parity: int) -> float:
    """The fewest tenths of a layer at which the mean of curves over very many thresholds is at most a point below the end."""
    drawn = []
    for fold in range(FOLDS):
        cell = crowded_cell(parity, fold)
        thresholds = [0, *np.geomspace(1e-6, 0.05, 250)]
        points = (replay_point(cell, "accuracy", "entropy", threshold) for threshold in thresholds)
        drawn.append(np.array(sorted({p.layers: p.measures["score"] for p in points}.items())).T)
    grid = np.arange(10, 61) / 10
    mean = np.mean([np.interp(grid, *curve) for curve in drawn], axis=0)
    return float(grid[np.flatnonzero(mean >= mean[-1] - ALLOWED_LOSS - 1e-8)[0]])


@pytest.mark.slow
@pytest.mark.parametrize("new", [True, False], ids=["with curves", "as before"])
def test_mlflow_best_file_report_and_compare_give_the_same_true_layers(tmp_path, new):
    """On a grid of twentieths no threshold lies between all layers and one."""
    for parity in (0, 1):
        evenly = [replay_point(crowded_cell(parity, 0), "accuracy", REPORTED, (i + 1) / 20).layers for i in range(20)]
        assert max(evenly) < 1.1
    folder = made_sweep(tmp_path / "crowded", "sqlite:///nowhere.db", held_out=crowded_cell, curves=new, space=SPACE)
    state, charts, found = folder.ledger.read(), told_to_mlflow(folder), best_of(folder)
    layers = {config: chart.metrics["cv/layers"] for config, chart in charts.items()}
    assert len(set(layers.values())) == 2
    for config, chart in charts.items():
        assert layers[config] == pytest.approx(true_layers(state.indices[config] % 2), abs=0.1)
        steps, score = np.array(chart.curve["layers"]), np.array(chart.curve["score"])
        assert steps[np.flatnonzero(score >= score[-1] - ALLOWED_LOSS - 1e-8)[0]] == layers[config]
        assert np.diff(steps).max() < 0.1001
    near = {one["configuration"]: one["layers"] for one in found["within_one_standard_error"]}
    assert near == {config: layers[config] for config in near}
    for method, told in compare_pool(SweepPool.of(folder), "clo-v2", "blo").layers.items():
        assert told == layers[best(tuple(c for c in state.history() if c.values["algorithm"] == method)).id]
    if not new:
        return
    page = str(sweep_page(folder))
    assert f"Layers needed: {layers[found['configuration']]:.2f} (" in page
    assert all(f"<td>{told:.2f}</td>" in page for told in layers.values())


def test_a_ledger_of_before_whose_logits_are_gone_reports_it_and_gives_no_layers(tmp_path):
    folder = made_sweep(
        tmp_path / "old", "sqlite:///nowhere.db", held_out=lambda i, f: crowded(), curves=False, space=SPACE
    )
    for file in (folder.path / "cells").iterdir():
        file.unlink()
    said: list[str] = []
    charts = told_to_mlflow(folder, said.append)
    assert charts
    assert all("cv/layers" not in c.metrics and not c.curve for c in charts.values())
    assert len(said) == 1
    assert (
        "is missing: the validation logits of a finished run; layers and curves that need it are not available"
        in said[0]
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert all("layers" not in near for near in best_of(folder)["within_one_standard_error"])
    assert any("are not available" in str(w.message) for w in told)
    compared = compare_pool(SweepPool.of(folder), "clo-v2", "blo")
    assert compared.layers == {}
    assert "is missing: the validation logits of a finished run; layers" in compared.no_layers


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(st.lists(records(exits=6), min_size=FOLDS, max_size=FOLDS), st.booleans())
def test_for_any_logits_all_figures_of_a_configuration_give_the_same_layers(cells, new):
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scores that are alike
        folder = made_sweep(
            Path(place) / "any", "sqlite:///nowhere.db", held_out=lambda i, f: cells[f], curves=new, space=SPACE
        )
        expected = round(layers_within([tradeoff(cell, metric="accuracy") for cell in cells]), 2)
        charts = told_to_mlflow(folder)
        found = best_of(folder)
        assert {c.metrics["cv/layers"] for c in charts.values()} == {expected}
        assert {near["layers"] for near in found["within_one_standard_error"]} == {expected}
        told = compare_pool(SweepPool.of(folder), "clo-v2", "blo").layers
        margins = SweepPool.of(folder).margins
        learned = all(margin.learned for margin in margins.values())  # all have the same logits
        assert set(told.values()) == ({expected} if learned else set())


@settings(max_examples=15, deadline=None)
@given(records(), st.sampled_from([0.0, ALLOWED_LOSS, 0.1]), st.floats(0, 1))
def test_for_any_logits_all_figures_of_one_record_give_the_same_layers(recorded, loss, share):
    curve = tradeoff(recorded, "entropy", metric="accuracy")
    point = curve.within(loss)
    assert layers_within([tradeoff(recorded, metric="accuracy")], loss) == point.layers  # one cell's, in another unit
    # `evaluate`, from the points that it writes
    told = evaluation(recorded, "accuracy")
    enough = [
        p["layers"]
        for p in told["curves"]["entropy"]
        if p["measures"]["score"] >= told["exits"]["score"][-1] - loss - 1e-8
    ]
    assert min(enough) == point.layers
    assert told["within"]["entropy"]["layers"] == curve.within().layers
    # A model's own file, from training or from a refit that pools one cell's logits
    by_file = curves(recorded, metric="accuracy")
    full = max(by_file["entropy"], key=lambda p: -p[1])
    kept = [recorded.depth / p[1] for p in by_file["entropy"] if p[2] >= full[2] - loss - 1e-8]
    assert min(kept) == pytest.approx(point.layers)
    # Calibration, which reads no labels, at the speed-up that these layers are
    unlabelled = RecordedLogits(recorded.logits, None, recorded.layers, recorded.depth)
    assert choose(unlabelled, "entropy", point.speed_up).reached == pytest.approx(point.speed_up)
    assert look_up(by_file, "entropy", point.speed_up).reached == pytest.approx(point.speed_up)


def test_a_refit_keeps_the_layers_below_the_exits_of_a_reduced_network(tmp_path):
    cell = crowded()
    reduced = RecordedLogits(cell.logits[[1, 3, 5]], cell.labels, (2, 4, 6), 12)
    folder = made_sweep(tmp_path / "reduced", "sqlite:///nowhere.db", held_out=lambda i, f: reduced, space=SPACE)
    logits = best_logits(choose_best([LoadedSweep.read(folder)], RankingObjective()).best)
    save_logits(tmp_path / "held-out.parquet", logits)
    again = pooled(load_logits(tmp_path / "held-out.parquet"))
    assert (again.layers, again.depth) == ((2, 4, 6), 12)
    assert choose(again, "entropy", 4).reached == pytest.approx(4, rel=0.02)
    layers, _ = mean_curve([tradeoff(again, metric="accuracy")])
    assert (layers[0], layers[-1]) == (2, 6)
