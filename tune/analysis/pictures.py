"""Pictures of a verdict and of all methods, as PNG: MLflow shows them beside its charts, in square frames."""

from __future__ import annotations

import dataclasses
import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tune.analysis.figures import MARKERS, colour
from tune.analysis.verdict import Effect, ScoreCurve, Verdict
from tune.analysis.wording import level

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Inches and dots per inch: text of 8 points is 11 pixels high in a frame of 420 pixels.
_SIZE, _DPI = 4.5, 200
_NEUTRAL = "#5a5e66"

#: The largest number of exits that a forest plot shows; of more it shows evenly spaced ones, the first and last included.
MOST_EXITS = 8

#: The largest number of lines in a picture by exit.
MOST_LINES = 8

#: The layer speed-ups that an axis names.
SPEED_UPS = (1, 1.5, 2, 3, 4, 6, 8, 12, 24)


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a forest plot: a value with its interval, in points or per cent; no interval if `low` is None."""

    name: str
    value: float
    low: float | None
    high: float | None
    colour: str
    filled: bool = True


@dataclasses.dataclass(frozen=True)
class ExitLine:
    """Values by exit with their intervals, (M,) each, in points, per cent or weights; NaN ends where there is none."""

    name: str
    values: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    colour: str


def verdict_picture(verdict: Verdict) -> bytes:
    """Draw a verdict's sentence and forest plot."""
    sides = [colour(str(side.value), i) for i, side in enumerate((verdict.a, verdict.b))]
    rows = [_row(effect, sides) for effect in _shown(verdict.effects)]
    figure, axes = _square(f"{verdict.sentence}.")
    _forest(axes, rows)
    axes.axvline(0, color="#333333", lw=0.9, zorder=0)
    reach = max(abs(end) for end in axes.get_xlim())
    axes.set_xlim(-reach, reach)
    intervals = f"with {level(verdict.main.confidence)}" if verdict.main.low is not None else "without intervals"
    axes.set_xlabel(
        _lines(f"{verdict.a.name} minus {verdict.b.name}, points, {intervals}", 50) + "\n(filled: significant)"
    )
    for name, x, align in ((f"◂ {verdict.b.name} better", 0, "left"), (f"{verdict.a.name} better ▸", 1, "right")):
        name = _lines(name, 26)
        axes.annotate(
            name, (x, 1.0), (0, 4), xycoords="axes fraction", textcoords="offset points", ha=align, fontsize=7.5
        )
    return _png(figure)


def curves_picture(verdict: Verdict) -> bytes:
    """Draw the score of both sides against layer speed-up, with their intervals."""
    first = verdict.curves["a"]
    runs = f"{first.runs} run{'' if first.runs == 1 else 's'}"
    words = f"band: 95 % CI over {runs}" if first.band == "interval" else f"mean over {runs}, too few for an interval"
    figure, axes = _square(f"Score against layer speed-up under {verdict.criterion}; {words}")
    for i, (side, key) in enumerate(((verdict.a, "a"), (verdict.b, "b"))):
        _curve(axes, side.name, verdict.curves[key], colour(str(side.value), i))
    most = max(max(verdict.curves[key].speed_ups) for key in ("a", "b"))
    axes.set_xscale("log")
    ticks = [tick for tick in SPEED_UPS if tick <= 1.02 * most]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="layer speed-up", ylabel="validation score (%)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def rows_picture(title: str, rows: Sequence[Row], x: str, *, zero: bool) -> bytes:
    """Draw values with their intervals, one below the other.

    Args:
        title: Title of the picture.
        rows: The values, from top to bottom.
        x: Label of the axis.
        zero: Whether to mark 0.
    """
    figure, axes = _square(title)
    _forest(axes, rows)
    if zero:
        axes.axvline(0, color="#333333", lw=0.9, zorder=0)
    axes.set_xlabel(x)
    return _png(figure)


def exits_picture(title: str, lines: Sequence[ExitLine], y: str, *, level: float | None = None) -> bytes:
    """Draw values by exit, each with its interval; the lines stand beside each other, so that intervals do not overlap.

    Args:
        title: Title of the picture.
        lines: The lines; at most :data:`MOST_LINES` of them are drawn.
        y: Label of the y-axis.
        level: A value to mark, such as 0 or the start of all weights.
    """
    kept = lines[:MOST_LINES]
    figure, axes = _square(title + (f" ({len(kept)} of {len(lines)})" if len(kept) < len(lines) else ""))
    if level is not None:
        axes.axhline(level, color="#333333", lw=0.9, zorder=0)
    for i, line in enumerate(kept):
        at = [exit + 0.5 * ((i + 0.5) / len(kept) - 0.5) for exit in range(1, len(line.values) + 1)]
        style: dict[str, Any] = {
            "color": line.colour,
            "marker": MARKERS[i % len(MARKERS)],
            "ls": ("-", "--", ":")[i // 4 % 3],
        }
        axes.plot(at, line.values, ms=4.5, lw=1.3, mfc="white", label=_lines(line.name, 30), **style)
        axes.vlines(at, line.low, line.high, color=line.colour, lw=1.6)
    exits = max(len(line.values) for line in kept)
    axes.set_xticks(range(1, exits + 1, -(-exits // 12)))
    axes.set(xlabel="exit", ylabel=y)
    axes.grid(alpha=0.3)
    if len(kept) > 1:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=7.5)
    return _png(figure)


def _shown(effects: Sequence[Effect]) -> list[Effect]:
    exits = [e for e in effects if e.key.startswith("exit_")]
    last = len(exits) - 1
    kept = {exits[round(i * last / (MOST_EXITS - 1))].key for i in range(MOST_EXITS)} if exits else set()
    return [e for e in effects if e.estimate is not None and (e.key in kept or not e.key.startswith("exit_"))]


def _row(effect: Effect, sides: Sequence[str]) -> Row:
    assert effect.estimate is not None
    significant = bool(effect.significant)
    tint = sides[0 if effect.estimate > 0 else 1] if significant else _NEUTRAL
    low, high = (None if end is None else 100 * end for end in (effect.low, effect.high))
    return Row(effect.name, 100 * effect.estimate, low, high, tint, significant)


def _lines(text: str, width: int) -> str:
    """Wrap a text of a picture, without mathematics: names may hold "$"."""
    return "\n".join(textwrap.wrap(text, width, break_on_hyphens=False)).replace("$", r"\$")


def _square(title: str) -> tuple[Figure, Axes]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=(_SIZE, _SIZE), dpi=_DPI, layout="constrained")
        axes = figure.subplots()
    figure.suptitle(_lines(title, 58), fontsize=8.6, fontweight="bold", ha="left", x=0.015)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _forest(axes: Axes, rows: Sequence[Row]) -> None:
    at = range(len(rows))
    for y, row in zip(at, rows, strict=True):
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [y, y], color=row.colour, lw=1.6, solid_capstyle="butt")
        face = row.colour if row.filled else "white"
        axes.plot(row.value, y, marker="o", ms=5.5, mfc=face, mec=row.colour, mew=1.4)
    axes.set_yticks(at, [_lines(row.name, 28) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(axis="y", length=0)


def _curve(axes: Axes, name: str, curve: ScoreCurve, tint: str) -> None:
    score, low, high = ([100 * v for v in values] for values in (curve.scores, curve.low, curve.high))
    axes.plot(curve.speed_ups, score, color=tint, lw=1.8, label=_lines(name, 28))
    if curve.band == "interval":
        axes.fill_between(curve.speed_ups, low, high, color=tint, alpha=0.15, lw=0)


def _png(figure: Figure) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    return drawn.getvalue()
