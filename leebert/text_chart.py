"""Charts for the terminal: curves as lines of text, without colours, in Unicode or ASCII."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TextIO

import numpy as np

#: The x and y values of a curve, x rising.
Points = tuple[Sequence[float], Sequence[float]]

_MARKS = {True: "●○▲△◆◇■□", False: "ox+*#%@&"}
#: The vertical axis, a tick on it, the corner, the horizontal axis, and a tick on it.
_AXES = {True: "│┤└─┬", False: "||+-+"}


def supports_unicode(stream: TextIO | None = None) -> bool:
    """Return whether a stream, by default stdout, can print the marks of a chart in Unicode."""
    encoding = getattr(stream or sys.stdout, "encoding", None) or "ascii"
    try:
        (_MARKS[True] + _AXES[True]).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def line_chart(
    series: Mapping[str, Points],
    *,
    x_ticks: Mapping[float, str],
    x_label: str,
    y_label: str,
    width: int = 78,
    height: int = 12,
    unicode: bool | None = None,
) -> list[str]:
    """Draw curves in one chart, each with another mark.

    Args:
        series: Curves by name; of curves at the same place, the first one is visible. At most eight.
        x_ticks: Position → text of each tick on the x axis, rising.
        x_label: Label of the x axis.
        y_label: Label of the y axis.
        width: Width in characters, at least 30.
        height: Lines of the plot, at least 5.
        unicode: Whether to use other characters than ASCII; None: if stdout can print them.

    Returns:
        The lines: label, chart, x axis, and the legend.

    Raises:
        ValueError: There is no curve, there are too many, or a curve has no points.
    """
    marks = _MARKS[supports_unicode() if unicode is None else unicode]
    axes = _AXES[marks == _MARKS[True]]
    if not 1 <= len(series) <= len(marks) or not all(len(x) for x, _ in series.values()):
        raise ValueError(f"a chart has 1 to {len(marks)} curves, each with points")
    ticks = _ticks([y for _, ys in series.values() for y in ys], min(5, (height - 1) // 2))
    low, high = ticks[-1], ticks[0]
    labels = [f"{value:.6g}" for value in ticks]
    margin = max(map(len, labels)) + 1
    width = max(width, 30)
    columns = width - margin - 1
    canvas = _canvas(series, marks, (min(x_ticks), max(x_ticks)), (low, high), (height, columns))
    places = np.linspace(0, height - 1, len(ticks)).round().astype(int).tolist()
    rows_of_labels = dict(zip(places, labels, strict=True))
    lines = textwrap.wrap(y_label, width)
    for number, row in enumerate(canvas):
        label = rows_of_labels.get(number, "")
        lines.append(f"{label:>{margin - 1}} {axes[1] if label else axes[0]}{row}".rstrip())
    lines += _x_axis(x_ticks, axes, margin, columns)
    indent = " " * (margin + 1)
    lines += textwrap.wrap(x_label, width, initial_indent=indent, subsequent_indent=indent)
    lines += _legend([f"{mark} {name}" for mark, name in zip(marks, series, strict=False)], width)
    return lines


def _ticks(values: Sequence[float], steps: int) -> list[float]:
    """Return round numbers at equal distances around the values, falling, at most `steps` + 1."""
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - 1, high + 1
    power = 10.0 ** (np.floor(np.log10(high - low)) - 1)
    for step in (factor * power for factor in (1, 2, 5, 10, 20, 50, 100, 200)):
        first, last = int(np.floor(low / step + 1e-9)), int(np.ceil(high / step - 1e-9))
        if last - first <= steps:
            break
    return [float(number * step) for number in range(last, first - 1, -1)]


def _canvas(
    series: Mapping[str, Points], marks: str, x: tuple[float, float], y: tuple[float, float], size: tuple[int, int]
) -> list[str]:
    """Draw all curves, interpolated between their points, into lines of text."""
    height, columns = size
    cells = np.full((height, columns), " ", dtype="<U1")
    positions = np.linspace(*x, columns)
    for mark, (xs, ys) in reversed(list(zip(marks, series.values(), strict=False))):
        inside = (positions >= min(xs) - 1e-9) & (positions <= max(xs) + 1e-9)
        inside[np.abs(positions - xs[0]).argmin()] = True  # a curve may lie between two columns
        rows = (y[1] - np.interp(positions, xs, ys)) / (y[1] - y[0]) * (height - 1)
        cells[rows.round().astype(int).clip(0, height - 1)[inside], np.flatnonzero(inside)] = mark
    return ["".join(row) for row in cells]


def _x_axis(ticks: Mapping[float, str], axes: str, margin: int, columns: int) -> list[str]:
    """Draw the x axis and the texts of its ticks; a text that would touch the one before is left out."""
    low, high = min(ticks), max(ticks)
    axis, texts = [axes[3]] * columns, [" "] * (columns + margin + 1)
    end = -1
    for position, text in ticks.items():
        column = round((position - low) / ((high - low) or 1) * (columns - 1))
        axis[column] = axes[4]
        start = min(max(column + margin + 1 - len(text) // 2, 0), len(texts) - len(text))
        if start > end:
            texts[start : start + len(text)] = text
            end = start + len(text)
    return [" " * margin + axes[2] + "".join(axis), "".join(texts).rstrip()]


def _legend(entries: Sequence[str], width: int) -> list[str]:
    """Join the entries of the legend to lines of at most this width, if each entry is no longer."""
    lines = [""]
    for entry in entries:
        if lines[-1] and len(lines[-1]) + 3 + len(entry) > width:
            lines.append("")
        lines[-1] += ("   " if lines[-1] else "") + entry
    return lines
