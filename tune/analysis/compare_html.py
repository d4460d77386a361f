"""The page of `compare --html`: tables, verdicts and figures of one or several sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leebert.errors import LeebertError
from tune.analysis import figures
from tune.analysis.compare import Comparison
from tune.analysis.compare_sweeps import OnSweep, across
from tune.analysis.compare_text import across_rows, across_sentences, rows, sentences
from tune.analysis.html import HtmlPage
from tune.analysis.labels import algorithm_label
from tune.analysis.sweeps import SweepPool
from tune.store.curves import FEWEST
from tune.store.history import Configuration, History, describe
from tune.store.ranking import best, completed


def comparison_page(results: Sequence[OnSweep]) -> HtmlPage:
    """Make the page of A minus B with its figures; the sweeps must have been read with their epochs."""
    scores = results[0].scores
    tasks = ", ".join(dict.fromkeys(result.task for result in results))
    page = HtmlPage(f"{scores.a} against {scores.b} on {tasks}")
    if combined := across(results):
        page.heading("Over tasks")
        page.table(across_rows(combined))
        page.text(*across_sentences(combined))
    for result in results:
        _sweep(page, result, f"{result.sweep}: " if len(results) > 1 else "")
    return page


def _sweep(page: HtmlPage, result: OnSweep, prefix: str) -> None:
    scores, pool = result.scores, result.pool
    page.heading(f"{prefix}Mean over exits, and each exit")
    page.text(f"Sweep {result.sweep}; {scores.option}: {scores.a} minus {scores.b}, paired by configuration and run.")
    if pool.running:
        page.text("The sweep is still running: the results are preliminary.")
    page.table(rows(scores))
    page.text(*sentences(scores))
    if result.layers:
        each = ", ".join(f"{name} {layers:.2f}" for name, layers in result.layers.items())
        page.text(f"Layers needed by the best configuration of each side: {each} ({FEWEST}).")
    if result.no_layers:
        page.text(f"Layers needed are not available: {result.no_layers}")
    for objective, comparison in result.at_speed_ups:
        page.heading(f"{prefix}{str(objective).capitalize()}")
        if isinstance(comparison, str):
            page.text(f"No comparison at layer speed-up {objective.speed_up:g}: {comparison}")
            continue
        page.table(rows(comparison))
        page.text(*sentences(comparison))
    colours = [figures.colour(str(value), i) for i, value in enumerate((scores.a, scores.b))]
    page.heading(f"{prefix}Score by exit")
    panels = {
        f"{line.a} - {line.b}": bands
        for line in scores.lines
        if (bands := figures.depth_bands(line, pool.state.history()))
    }
    if panels:
        page.figure(
            figures.bands(panels, "exit layer", "validation score (%)", colours),
            "Score of each exit at the best epoch, averaged over the compared pairs: mean and range over runs.",
        )
    else:
        page.text("The scores of the exits are not recorded.")
    tops = {name: best(side) for name, side in sides(scores, pool.state.history()).items() if completed(side)}
    if len(tops) < 2:
        page.text("Patience curves and weights need a completed configuration on each side.")
        return
    draw_best(page, pool, tops, colours, prefix=prefix, of="side")


def sides(scores: Comparison, history: History) -> dict[str, History]:
    """Return the compared configurations of A and of B, by the sides' names."""
    return {
        _side_title(scores.option, value): tuple(c for c in history if c.id in ids)
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
    """Draw patience curves and learned weights of the best configurations.

    Args:
        page: The page.
        pool: The sweeps of the configurations.
        tops: The best configuration by name of its side or method.
        colours: A colour for each of them.
        prefix: Start of the headings, such as the name of a sweep.
        of: What the names are: `side` or `method`.
    """
    page.heading(f"{prefix}Patience")
    try:
        metric = pool.manifest["metric"]
        curves = {name: figures.patience_points(pool.homes[c.id], pool.state, c, metric) for name, c in tops.items()}
    except (LeebertError, OSError) as error:
        page.text(f"No patience curves: {error}")
    else:
        page.figure(
            figures.patience(curves, colours),
            f"The best configuration of each {of} under the exit criterion patience, at each threshold. Means over runs.",
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
            "ω of each exit by epoch, for the same configurations. Means over runs, up to the end of the shortest run.",
        )
    else:
        page.text("No learned weights are recorded.")


def _side_title(option: str, value: Any) -> str:
    return algorithm_label(value) if option == "algorithm" else f"{option} {value}"
