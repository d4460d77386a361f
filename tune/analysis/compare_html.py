"""The page of `compare --html`: tables, sentences and figures of one or several sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leebert.errors import LeebertError
from tune.analysis import figures
from tune.analysis.compare import Comparison
from tune.analysis.compare_sweeps import OnSweep, across, across_rows, across_sentences
from tune.analysis.compare_text import rows, sentences
from tune.analysis.html import HtmlPage
from tune.analysis.labels import algorithm_label
from tune.analysis.sweeps import SweepPool
from tune.store.curves import FEWEST
from tune.store.history import Configuration, History, describe
from tune.store.ranking import best, complete


def comparison_page(found: Sequence[OnSweep]) -> HtmlPage:
    """A minus B with its figures. The sweeps' states hold their epochs."""
    scores = found[0].scores
    tasks = ", ".join(dict.fromkeys(one.task for one in found))
    page = HtmlPage(f"{scores.a} against {scores.b} on {tasks}")
    if told := across(found):
        page.heading("Over tasks")
        page.table(across_rows(told))
        page.text(*across_sentences(told))
    for one in found:
        _sweep(page, one, f"{one.sweep}: " if len(found) > 1 else "")
    return page


def _sweep(page: HtmlPage, found: OnSweep, prefix: str) -> None:
    scores, pool = found.scores, found.pool
    page.heading(f"{prefix}Mean over exits, and each exit")
    page.text(f"Sweep {found.sweep}; {scores.option}: {scores.a} minus {scores.b}, paired on configurations and cells.")
    if pool.running:
        page.text("The sweep is still running: this is what is there.")
    page.table(rows(scores))
    page.text(*sentences(scores))
    if found.layers:
        each = ", ".join(f"{name} {layers:.2f}" for name, layers in found.layers.items())
        page.text(f"Layers of the best configuration of each: {each} ({FEWEST}).")
    if found.no_layers:
        page.text(f"No layers: {found.no_layers}")
    for objective, comparison in found.at_speed_ups:
        page.heading(f"{prefix}{str(objective).capitalize()}")
        if isinstance(comparison, str):
            page.text(f"Not at speed-up {objective.speed_up}: {comparison}")
            continue
        page.table(rows(comparison))
        page.text(*sentences(comparison))
    colours = [figures.colour(str(value), i) for i, value in enumerate((scores.a, scores.b))]
    page.heading(f"{prefix}Depth")
    panels = {
        f"{line.a} - {line.b}": bands
        for line in scores.lines
        if (bands := figures.depth_bands(line, pool.state.history()))
    }
    if panels:
        page.figure(
            figures.bands(panels, "exit after layer", "held-out score, per cent", colours),
            "Score of each exit at the best epoch, over the pairs and cells that count: mean over cells of the mean over "
            "configurations, and range over cells.",
        )
    else:
        page.text("The scores of the exits weren't recorded.")
    tops = {name: best(side) for name, side in sides(scores, pool.state.history()).items() if complete(side)}
    if len(tops) < 2:
        page.text("A side has no complete configuration yet, so no patience curves and no weights are drawn.")
        return
    draw_best(page, pool, tops, colours, prefix=prefix, of="side")


def sides(scores: Comparison, history: History) -> dict[str, History]:
    """The configurations of A and of B, narrowed as the comparison is, by what the sides are called."""
    return {
        _named(scores.option, value): tuple(c for c in history if c.id in ids)
        for value, ids in zip((scores.a, scores.b), scores.sides, strict=True)
    }


def draw_best(
    page: HtmlPage,
    pool: SweepPool,
    tops: Mapping[str, Configuration],
    colours: Sequence[str],
    *,
    prefix: str = "",
    of: str,
) -> None:
    """Patience curves and learned weights of one configuration per name, the best `of` each of something."""
    page.heading(f"{prefix}Patience")
    try:
        metric = pool.manifest["metric"]
        curves = {name: figures.patience_points(pool.homes[c.id], pool.state, c, metric) for name, c in tops.items()}
    except (LeebertError, OSError) as error:
        page.text(f"No patience curves: {error}")
    else:
        page.figure(
            figures.patience(curves, colours),
            f"The best configuration of each {of}; rows leave when so many exits in a row agree. Means over cells.",
        )
    page.text(*(f"{name}: {describe(c.values)}" for name, c in tops.items()))
    page.heading(f"{prefix}Learned weights over time")
    maps = {
        name: {figures.TERMS[term]: m for term, m in figures.omega_maps(pool.state, c).items()}
        for name, c in tops.items()
    }
    maps = {name: terms for name, terms in maps.items() if terms}
    if maps:
        page.figure(
            figures.heat_maps(maps),
            "ω of each exit by epoch, of the same configurations. Means over cells, up to where the first cell ends.",
        )
    else:
        page.text("No learned weights are recorded.")


def _named(option: str, value: Any) -> str:
    return algorithm_label(value) if option == "algorithm" else f"{option} {value}"
