"""A verdict in HTML pages: its sentence, a forest plot, both curves of score against layer speed-up, and what limits it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tune.analysis.charts import banded, chart, wrapped
from tune.analysis.compare_text import verdict_lines
from tune.analysis.figures import colour
from tune.analysis.html import Chart, HtmlPage
from tune.analysis.pictures import SPEED_UPS
from tune.analysis.verdict import Effect, ScoreCurve, Verdict
from tune.analysis.wording import level


def add_verdict(page: HtmlPage, verdict: Verdict) -> None:
    """Add a verdict to a page: what there is to see at one glance."""
    page.verdict(f"{verdict.sentence}.")
    figures = [(forest(verdict), forest_caption(verdict))]
    if verdict.curves:
        figures.append((speed_curves(verdict), curves_caption(verdict)))
    page.figure(*figures)
    if not verdict.curves:
        page.text(f"No curves of score against layer speed-up: {verdict.no_curves}.")
    page.text(*verdict_lines(verdict)[1:])


def colours(verdict: Verdict) -> tuple[str, str]:
    """Return the colours of A and B."""
    a, b = (colour(str(side.value), i) for i, side in enumerate((verdict.a, verdict.b)))
    return a, b


def forest_caption(verdict: Verdict) -> str:
    """Return what a forest plot shows, and which of its intervals are adjusted."""
    main = verdict.main
    text = f"{verdict.a.name} minus {verdict.b.name} in points of the validation score"
    if main.low is None:
        return f"{text}; {main.missing}." if main.missing else f"{text}."
    text += f", with {level(main.confidence)}"
    if any(effect.key.startswith("exit_") for effect in verdict.effects):
        text += "; those of the exits hold together (Bonferroni)"
    return f"{text}. Filled markers: significant; hollow ones: not."


def curves_caption(verdict: Verdict, names: Sequence[str] = ("a", "b")) -> str:
    """Return what these curves show, and the band of each."""
    bands = [_band(verdict.curves[name]) for name in names]
    titles = {"a": verdict.a.name, "b": verdict.b.name, "difference": "difference"}
    if len(set(bands)) == 1:
        band = f"Band: {bands[0]}"
    else:
        band = "Bands: " + "; ".join(f"{titles[name]}, {of}" for name, of in zip(names, bands, strict=True))
    return f"Mean over the compared configurations under {verdict.criterion}, from the validation logits. {band}."


def _band(curve: ScoreCurve) -> str:
    if curve.band == "interval":
        return f"95 % CI over {curve.runs} runs"
    return f"none, {_runs(curve.runs)} {'is' if curve.runs == 1 else 'are'} too few for an interval"


def _runs(n: int) -> str:
    return f"{n} run{'' if n == 1 else 's'}"


def forest(verdict: Verdict) -> Chart:
    """Draw the differences as a forest plot, the mean over exits at the top."""
    shown = [effect for effect in verdict.effects if effect.estimate is not None]
    of_a, of_b = colours(verdict)
    names = {effect.key: wrapped(effect.name, 28) for effect in shown}
    data = [
        _effects([e for e in shown if _side_of(e) == side], names, tint, filled=bool(side))
        for side, tint in ((0, "$soft"), (1, of_a), (-1, of_b))
    ]
    rows = len(shown)
    ends = [100 * value for e in shown for value in (e.estimate, e.low, e.high) if value is not None]
    reach = 1.12 * max(abs(end) for end in (*ends, 0.1))
    where = {"xref": "paper", "yref": "paper", "y": 1.0, "yanchor": "bottom", "showarrow": False, "font": {"size": 13}}
    titles: list[dict[str, Any]] = [
        {**where, "x": 0, "xanchor": "left", "text": wrapped(f"◂ {verdict.b.name} better", 20)},
        {**where, "x": 1, "xanchor": "right", "text": wrapped(f"{verdict.a.name} better ▸", 20)},
    ]
    lines = max(title["text"].count("<br>") for title in titles)
    result = chart(
        [trace for trace in data if trace["x"]],
        "difference in points",
        "",
        xaxis={"range": [-reach, reach], "zeroline": True, "zerolinewidth": 1.5},
        yaxis={"automargin": True, "categoryorder": "array", "categoryarray": [names[e.key] for e in reversed(shown)],
               "showgrid": False},
        hover="closest",
        height=max(300, 110 + (30 if rows <= 14 else 21) * rows),
        legend=False,
    )  # fmt: skip
    layout = {
        **result.layout,
        "annotations": titles,
        "margin": {**result.layout["margin"], "t": 40 + 18 * lines, "l": 20},
    }
    return Chart(result.data, layout, result.height)


def _side_of(effect: Effect) -> int:
    """Return 1 if A is significantly better, -1 if B is, else 0."""
    if not effect.significant or effect.estimate is None:
        return 0
    return 1 if effect.estimate > 0 else -1


def _effects(effects: Sequence[Effect], names: dict[str, str], tint: str, *, filled: bool) -> dict[str, Any]:
    at = [100 * (e.estimate or 0.0) for e in effects]
    ends = [(100 * e.low, 100 * e.high) if e.low is not None and e.high is not None else None for e in effects]
    words = [
        f"{names[e.key]}: {x:+.2f}" + (f" ({end[0]:.2f} to {end[1]:.2f}), p {e.p:.3f}" if end and e.p is not None else "")
        + f", {_runs(e.runs)}"
        for e, x, end in zip(effects, at, ends, strict=True)
    ]  # fmt: skip
    trace = {
        "type": "scatter", "mode": "markers", "x": [round(x, 4) for x in at], "y": [names[e.key] for e in effects],
        "marker": {
            "color": tint, "size": [13 if e.key == "score" else 9 for e in effects],
            "symbol": [("diamond" if e.key == "score" else "circle") + ("" if filled else "-open") for e in effects],
            "line": {"color": tint, "width": 2},
        },
        "text": words, "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip
    if any(ends):  # else their caps would be drawn over the markers
        trace["error_x"] = {
            "type": "data", "symmetric": False, "color": tint, "thickness": 2, "width": 4,
            "array": [round(end[1] - x, 4) if end else None for x, end in zip(at, ends, strict=True)],
            "arrayminus": [round(x - end[0], 4) if end else None for x, end in zip(at, ends, strict=True)],
        }  # fmt: skip
    return trace


def speed_curves(verdict: Verdict) -> Chart:
    """Draw the score of both sides against layer speed-up."""
    named = {verdict.a.name: verdict.curves["a"], verdict.b.name: verdict.curves["b"]}
    return _against_speed_up(named, colours(verdict), "validation score (%)")


def difference_curve(verdict: Verdict) -> Chart:
    """Draw A minus B against layer speed-up."""
    name = f"{verdict.a.name} minus {verdict.b.name}"
    return _against_speed_up({name: verdict.curves["difference"]}, ["#5b3cc4"], "difference in points", zero=True)


def _against_speed_up(curves: dict[str, ScoreCurve], tints: Sequence[str], y: str, *, zero: bool = False) -> Chart:
    data: list[dict[str, Any]] = []
    for i, ((name, curve), tint) in enumerate(zip(curves.items(), tints, strict=True)):
        ends = (curve.low, curve.high) if curve.band == "interval" else (curve.scores, curve.scores)
        mean, low, high = ([100 * v for v in line] for line in (curve.scores, *ends))
        data += banded(name, curve.speed_ups, mean, low, high, tint, i)
    most = max(max(curve.speed_ups) for curve in curves.values())
    ticks = [tick for tick in SPEED_UPS if tick <= 1.02 * most]
    axis = {
        "type": "log",
        "tickvals": ticks,
        "ticktext": [f"{t:g}" for t in ticks],
        "tickangle": 0,
        "hoverformat": ".2f",
    }
    return chart(data, "layer speed-up", y, xaxis=axis, yaxis={"zeroline": zero, "zerolinewidth": 1.5}, height=400)
