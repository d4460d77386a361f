"""The pages: what stands on them is escaped and drawn, and importance says what the scores say."""

from __future__ import annotations

import base64
import re

import numpy as np
import pytest

from tune import figures
from tune.history import Cell, Configuration, EpochScore
from tune.importance import TOGETHER, importances
from tune.page import Page
from tune.space import SweepSpec

SPEC = {
    "task": "mrpc",
    "backbone": "x",
    "algorithms": ["clo-v2", "blo"],
    "space": {"lr_theta": [1e-5, 1e-4, 1e-3], "cycle_length": [2, 4], "batch_size": [8, 16]},
    "folds": 2,
}


def history(spec: SweepSpec, score, state="complete"):
    told = []
    for i, values in enumerate(spec.configurations()):
        cells = tuple(Cell(0, k, "finished", (EpochScore(0, score(values) + k / 1000),)) for k in range(2))
        told.append(Configuration(f"c{i}", values, state, cells))
    return tuple(told)


def test_the_option_that_decides_is_the_important_one():
    spec = SweepSpec.model_validate(SPEC)
    found = importances(spec, history(spec, lambda v: 0.5 + 0.1 * np.log10(v["lr_theta"] / 1e-5)))
    assert found.keys() == {TOGETHER, "clo-v2", "blo"}
    for name, shares in found.items():
        assert sum(shares.values()) == pytest.approx(1.0)
        assert shares["lr_theta"] > 0.9, name
    assert "cycle_length" in found["clo-v2"]
    assert "cycle_length" not in found["blo"]
    algorithms = importances(spec, history(spec, lambda v: 0.5 + 0.2 * (v["algorithm"] == "blo")))
    assert algorithms[TOGETHER]["algorithm"] > 0.9
    assert algorithms.keys() == {TOGETHER}, "within an algorithm all scores are equal"


def test_what_is_unfinished_says_nothing_of_importance():
    spec = SweepSpec.model_validate(SPEC)
    assert importances(spec, history(spec, lambda v: v["lr_theta"], state="pruned")) == {}


def test_text_is_escaped_and_figures_are_drawn_within_the_page(tmp_path):
    page = Page("<script>")
    page.heading("a & b")
    page.text("<img src=x>")
    page.table([("x", "y"), ("<b>", 1)])
    ramp = np.arange(1, 4)
    page.figure(figures.bands({"a<b": (ramp, ramp, ramp - 1, ramp + 1)}, "x", "y", ["#123456"]), '"quoted"')
    text = page.write(tmp_path / "new" / "page.html").read_text()
    assert "<script>" not in text
    assert "<img src=x>" not in text
    assert "<td>&lt;b&gt;</td><td>1</td>" in text
    (image,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', text)
    drawn = base64.b64decode(image).decode()
    assert drawn.startswith("<?xml")
    assert "#123456" in drawn


def test_the_same_figure_is_the_same_file():
    def drawn():
        page = Page("t")
        page.figure(figures.shares({"g": {"a": 0.4, "b": 0.6}}), "c")
        return str(page)

    assert drawn() == drawn()
