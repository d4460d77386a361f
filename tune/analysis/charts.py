"""The interactive charts of HTML pages, as data for plotly; see `tune.analysis.figures` for their numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tune.analysis.figures import MARKERS, PALETTE, Band
from tune.analysis.html import Chart

#: The start of all loss weights: the middle of a heat map's colours.
START = 1.0

#: The smallest distance between the middle and either end of a heat map's colours. A weight that moves by less than a tenth of it
#: (`leebert.omega.MOVED`) has practically the colour of the start, so that noise does not look like structure.
WEIGHT_RANGE = 0.5

#: Below the start blue, above it orange.
_DIVERGING: list[tuple[float, str]] = [
    (0, "#1b5fa6"),
    (0.25, "#86b3dd"),
    (0.5, "#f3f3f0"),
    (0.75, "#f0ae6c"),
    (1, "#b8560b"),
]

_SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down"}
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")

#: The length of a line of a label, in characters.
_LABEL = 34

#: The length of a line of a title, in characters, of a chart that shares its row with another one.
_TITLE = 44


def wrapped(label: str, width: int = _LABEL) -> str:
    """Break a long label into lines."""
    return "<br>".join(textwrap.wrap(label.replace("<", "‹").replace(">", "›"), width, break_on_hyphens=False)) or label


def bands(
    curves: Mapping[str, Band], x: str, y: str, colours: Sequence[str], *, title: str = "", span: Any = None
) -> Chart:
    """Draw curves with their bands.

    Args:
        curves: Name → (x, mean, low, high) of each.
        x: Label of the x-axis.
        y: Label of the y-axis.
        colours: A colour for each curve.
        title: Title of the chart.
        span: Ends of the y-axis; None: of its values.
    """
    data: list[dict[str, Any]] = []
    for i, ((name, (at, mean, low, high)), colour) in enumerate(zip(curves.items(), colours, strict=True)):
        data += banded(name, at, mean, low, high, colour, i)
    ticks = next(iter(curves.values()))[0]
    every = {} if len(ticks) > 24 else {"dtick": 1}
    return chart(data, x, y, title=title, xaxis=every, yaxis={} if span is None else {"range": list(span)})


def banded(name: str, at: Any, mean: Any, low: Any, high: Any, colour: str, number: int) -> list[dict[str, Any]]:
    """Return the traces of a curve: the edges of its band, and its mean with both ends in the text of the pointer.

    Args:
        name: Name of the curve.
        at: (n,) x values.
        mean: (n,) y values.
        low: (n,) lower ends of the band.
        high: (n,) upper ends.
        colour: Colour as `#rrggbb`.
        number: Its number among the curves of a chart, which gives its marker and dash.
    """
    group = {"legendgroup": name, "x": _plain(at)}
    edge = {"mode": "lines", "line": {"width": 0, "color": colour}, "showlegend": False, "hoverinfo": "skip", **group}
    ends = [[round(float(a), 3), round(float(b), 3)] for a, b in zip(low, high, strict=True)]
    few = len(at) <= 30
    return [
        {**edge, "y": _plain(high)},
        {**edge, "y": _plain(low), "fill": "tonexty", "fillcolor": f"{colour}2a"},
        {
            "name": wrapped(name), "y": _plain(mean), "mode": "lines+markers" if few else "lines",
            "line": {"color": colour, "width": 2.2, "dash": _DASHES[number // len(PALETTE) % len(_DASHES)]},
            "marker": {"symbol": f"{_SYMBOLS[MARKERS[number % len(MARKERS)]]}-open", "size": 7}, "customdata": ends,
            "hovertemplate": "%{y:.2f} (%{customdata[0]:.2f} to %{customdata[1]:.2f})", **group,
        },
    ]  # fmt: skip


def common_span(curves: Sequence[Band]) -> tuple[float, float]:
    """Return ends for the y-axes of several charts that show all these curves."""
    low = min(float(np.nanmin(curve[2])) for curve in curves)
    high = max(float(np.nanmax(curve[3])) for curve in curves)
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def patience(curves: Mapping[str, Sequence[tuple[int, float, float]]], colours: Sequence[str]) -> tuple[Chart, Chart]:
    """Draw score, and mean exit layer, against patience (the paper's figures 3 and 4).

    Args:
        curves: By name, (patience, mean exit layer, score in per cent) of each point.
        colours: One per curve.
    """
    charts = []
    for index, y in ((2, "validation score (%)"), (1, "mean exit layer")):
        data = [
            _line(name, [p[0] for p in points], [p[index] for p in points], colour, i)
            for i, ((name, points), colour) in enumerate(zip(curves.items(), colours, strict=True))
        ]
        charts.append(chart(data, "patience", y, xaxis={"dtick": 1}, height=360))
    return charts[0], charts[1]


def heat_map(title: str, weights: np.ndarray, low: float, high: float) -> Chart:
    """Draw an (exits, epochs) map of loss weights, with their start in the middle of the colours.

    Args:
        title: Title of the chart.
        weights: (exits, epochs) weights.
        low: Weight at the lower end of the colours (:func:`weight_range`).
        high: Weight at the upper end.
    """
    exits, epochs = weights.shape
    start = (START - low) / (high - low)
    scale = [[round(2 * at * start if at <= 0.5 else start + (2 * at - 1) * (1 - start), 6), c] for at, c in _DIVERGING]
    trace = {
        "type": "heatmap", "z": [_plain(row) for row in weights], "x": list(range(1, epochs + 1)),
        "y": list(range(1, exits + 1)), "zmin": low, "zmax": high, "colorscale": scale,
        "colorbar": {"title": {"text": "weight"}, "thickness": 14, "outlinewidth": 0},
        "hovertemplate": "exit %{y}, epoch %{x}: %{z:.3f}<extra></extra>", "xgap": 1, "ygap": 1,
    }  # fmt: skip
    steps = {"dtick": max(1, epochs // 12)}
    return chart(
        [trace], "epoch", "exit", title=title, xaxis={**steps, "showgrid": False},
        yaxis={"dtick": max(1, exits // 12), "showgrid": False}, height=max(260, 120 + 18 * exits), legend=False,
    )  # fmt: skip


def weight_range(maps: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the ends of the colours of all heat maps of a page, each at least :data:`WEIGHT_RANGE` from the start."""
    low = min(float(weights.min()) for weights in maps)
    high = max(float(weights.max()) for weights in maps)
    return min(START - WEIGHT_RANGE, low), max(START + WEIGHT_RANGE, high)


def learning(curves: Sequence[tuple[str, str, str, Sequence[float], bool]]) -> Chart:
    """Draw learning curves.

    Args:
        curves: (method, colour, configuration in words, score per epoch in per cent, whether highlighted) of each.
    """
    data = []
    named: set[str] = set()
    many = len(curves) > 20
    for method, colour, words, scores, highlighted in curves:
        line = _line(method, list(range(1, len(scores) + 1)), scores, colour, 0)
        thick = {"width": 3.2 if highlighted else 1.2}
        line |= {"line": {"color": colour if highlighted or not many else f"{colour}70", **thick}}
        line |= {"legendgroup": method, "showlegend": method not in named, "marker": {"size": 4}}
        line["hovertemplate"] = f"{wrapped(words, 60)}: %{{y:.2f}}<extra></extra>"
        data.append(line)
        named.add(method)
    epochs = max(len(scores) for *_, scores, _ in curves)
    axis = {"dtick": max(1, epochs // 12)}
    return chart(data, "epoch", "validation score, mean over exits (%)", xaxis=axis, hover="closest")


def shares(title: str, group: Mapping[str, tuple[float, float, float, float]]) -> Chart:
    """Draw bars between 0 and 1: (share, its lowest, its highest, a second measure) by option."""
    ordered = sorted(group.items(), key=lambda item: item[1][0])
    names = [wrapped(name, 24) for name, _ in ordered]
    share, low, high, second = (np.array(column) for column in zip(*(v for _, v in ordered), strict=True))
    error = {
        "type": "data", "symmetric": False, "array": _plain(np.maximum(0, high - share)),
        "arrayminus": _plain(np.maximum(0, share - low)), "color": "$soft", "thickness": 1.2,
    }  # fmt: skip
    bar = {"type": "bar", "orientation": "h", "y": names}
    data = [
        {**bar, "x": _plain(second), "name": "PED-ANOVA", "marker": {"color": PALETTE[1]}},
        {**bar, "x": _plain(share), "name": "fANOVA", "marker": {"color": PALETTE[0]}, "error_x": error},
    ]
    height = 150 + 44 * len(names)
    return chart(data, "share", "", title=title, xaxis={"range": [0, 1]}, yaxis={"automargin": True}, height=height)


def front(
    curves: Sequence[tuple[str, str, str, np.ndarray, np.ndarray]], best: Sequence[tuple[float, float, str]]
) -> Chart:
    """Draw score against mean exit layer, and the Pareto front.

    Args:
        curves: (method, colour, configuration in words, mean exit layers, scores in per cent) of each configuration.
        best: (mean exit layer, score in per cent, configuration in words) of each point of the front.
    """
    data = []
    named: set[str] = set()
    faint = "ff" if len(curves) <= 8 else "90" if len(curves) <= 20 else "50"
    for method, colour, words, layers, scores in curves:
        line = _line(method, _plain(layers), _plain(scores), colour, 0)
        line |= {"mode": "lines", "line": {"color": f"{colour}{faint}", "width": 1.2}, "legendgroup": method}
        line |= {"showlegend": method not in named}
        line["hovertemplate"] = f"{wrapped(words, 60)}: %{{y:.2f}} at layer %{{x:.2f}}<extra></extra>"
        data.append(line)
        named.add(method)
    x, y, owners = zip(*best, strict=True)
    data.append({
        "name": "Pareto front", "x": list(x), "y": list(y), "mode": "lines+markers", "marker": {"size": 5},
        "line": {"shape": "hv", "color": "$text", "width": 2}, "text": [wrapped(owner, 60) for owner in owners],
        "hovertemplate": "%{text}: %{y:.2f} at layer %{x:.2f}<extra></extra>",
    })  # fmt: skip
    return chart(data, "mean exit layer", "validation score (%)", hover="closest", height=460)


def _line(name: str, x: Sequence[float | None], y: Sequence[float | None], colour: str, number: int) -> dict[str, Any]:
    return {
        "name": wrapped(name), "x": list(x), "y": [None if v is None else round(float(v), 4) for v in y], "mode": "lines+markers",
        "line": {"color": colour, "width": 2}, "marker": {"symbol": _SYMBOLS[MARKERS[number % len(MARKERS)]], "size": 6},
        "hovertemplate": "%{y:.2f}",
    }  # fmt: skip


def chart(
    data: Sequence[Mapping[str, Any]],
    x: str,
    y: str,
    *,
    title: str = "",
    xaxis: Mapping[str, Any] | None = None,
    yaxis: Mapping[str, Any] | None = None,
    hover: str = "x unified",
    height: int = 420,
    legend: bool = True,
) -> Chart:
    """Make a chart of traces.

    Args:
        data: The traces.
        x: Label of the x-axis.
        y: Label of the y-axis.
        title: Title of the chart.
        xaxis: Further settings of the x-axis.
        yaxis: Further settings of the y-axis.
        hover: What the pointer shows: all curves at its x, or the closest point.
        height: Height in pixels, without that of the legend.
        legend: Whether there is a legend; one trace needs none.
    """
    shown = sum(bool(trace.get("name")) and trace.get("showlegend", True) for trace in data) if legend else 0
    lines = max((str(trace.get("name", "")).count("<br>") + 1 for trace in data), default=1)
    below = 26 * lines * -(-shown // 3) if shown > 1 else 0
    heading = wrapped(title, _TITLE) if title else ""
    more = heading.count("<br>")
    top = 30 + 20 * more if title else 0
    total = height + below + 20 * more
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": x}, **(xaxis or {})},
        "yaxis": {"title": {"text": y}, **(yaxis or {})},
        "hovermode": hover,
        "showlegend": shown > 1,
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "traceorder": "normal"},
        "margin": {"l": 64, "r": 20, "t": 24 + below + top, "b": 56},
    }
    if title:
        layout["title"] = {
            "text": heading,
            "font": {"size": 15},
            "x": 0,
            "xref": "paper",
            "y": 0.98 - 20 * more / total,  # plotly puts the last line there
            "yanchor": "top",
        }
    return Chart(data, layout, total)


def _plain(values: Any) -> list[float | None]:
    """Return numbers JSON-ready; plotly draws a gap for None."""
    return [round(float(v), 6) if np.isfinite(v) else None for v in values]
