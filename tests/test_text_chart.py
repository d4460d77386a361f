"""Charts for the terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from saved_models import save_model
from scored_sweep import scored_sweep

from leebert.one_text import classify
from leebert.text_chart import line_chart, supports_unicode
from tune.analysis.terminal_chart import sweep_chart

TICKS = {1.0: "1 (4x)", 2.0: "2 (2x)", 4.0: "4 (1x)"}


def chart(series, **options):
    return line_chart(series, x_ticks=TICKS, x_label="layers", y_label="score, %", **options)


def test_a_curve_runs_from_its_first_to_its_last_point() -> None:
    lines = chart({"rising": ([1, 4], [0, 100])}, width=40, height=5, unicode=False)
    assert lines == [
        "score, %",
        "100 |                              ooooo",
        "    |                      oooooooo",
        " 50 |             ooooooooo",
        "    |     oooooooo",
        "  0 |ooooo",
        "    ++----------+----------------------+",
        "  1 (4x)     2 (2x)               4 (1x)",
        "     layers",
        "o rising",
    ]


@pytest.mark.parametrize("unicode", [False, True])
@pytest.mark.parametrize("width", [30, 80, 140])
def test_no_line_is_wider_than_asked_for_and_ascii_stays_ascii(unicode: bool, width: int) -> None:
    series = {f"method {i}": ([1, 2, 4], [50, 90 - i, 97.3]) for i in range(6)}
    lines = chart(series, width=width, unicode=unicode)
    assert max(map(len, lines)) <= width
    assert unicode or "\n".join(lines).isascii()
    assert all(name in "\n".join(lines) for name in series)


def test_the_first_of_equal_curves_is_visible_and_constant_curves_have_an_axis() -> None:
    lines = chart({"a": ([1, 4], [50, 50]), "b": ([1, 4], [50, 50])}, unicode=False)
    plot = "\n".join(lines[:-1])
    assert "oooo" in plot
    assert "xxxx" not in plot
    assert any(line.lstrip().startswith("50 |") for line in lines)


def test_a_single_point_is_visible() -> None:
    assert any("|" in line and "o" in line for line in chart({"a": ([2.0], [70.0])}, unicode=False)[1:-3])


@pytest.mark.parametrize("series", [{}, {"a": ([], [])}, {str(i): ([1], [1]) for i in range(9)}])
def test_no_curve_or_too_many(series) -> None:
    with pytest.raises(ValueError, match="1 to 8 curves"):
        chart(series)


@pytest.mark.parametrize(("encoding", "expected"), [("utf-8", True), ("ascii", False), ("latin-1", False)])
def test_the_stream_decides_on_unicode(encoding: str, expected: bool) -> None:
    assert supports_unicode(io.TextIOWrapper(io.BytesIO(), encoding=encoding)) is expected


def test_a_sweep_draws_each_methods_best_configuration(tmp_path: Path) -> None:
    folder = scored_sweep(tmp_path / "sweep", lambda values, seed, fold: 0.6 + 0.1 * (values["cycle_length"] == 4)
                          if values["algorithm"] == "clo-v2" else 0.65)  # fmt: skip
    lines = sweep_chart(folder, width=70, unicode=False)
    assert lines[-1].startswith("o CLO-v2")
    assert "x BLO" in lines[-1]
    assert "1 (3x)" in "\n".join(lines)
    assert max(map(len, lines)) <= 70
    assert sweep_chart(scored_sweep(tmp_path / "none", lambda *_: 0.5, state=lambda values: "")) == []


@pytest.mark.slow
def test_a_text_is_classified_by_the_layers_until_its_exit(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", None, ("no", "yes"))
    early = classify(model, "the film was good", rounds=3)
    assert early.label in ("no", "yes")
    assert 1 <= early.exit_layer <= early.depth == 4
    assert early.milliseconds > 0
    text = early.in_words()
    assert f"after layer {early.exit_layer} of 4" in text
    assert "wall-clock speed-up" in text
