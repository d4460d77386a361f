"""The page of `compare --html`: tables, verdicts and figures of one or several sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from leebert.errors import LeebertError
from leebert.methods import METHODS
from tune.analysis import charts, figures
from tune.analysis.compare import Comparison
from tune.analysis.compare_sweeps import OnSweep, across
from tune.analysis.compare_text import across_rows, across_sentences, rows, sentences
from tune.analysis.html import HtmlPage
from tune.analysis.labels import short_names
from tune.analysis.sweeps import SweepPool
from tune.analysis.verdict_html import add_verdict, colours, curves_caption, difference_curve
from tune.analysis.wording import side_name
from tune.store.curves import FEWEST
from tune.store.history import Configuration, History
from tune.store.ranking import best, completed


def comparison_page(results: Sequence[OnSweep]) -> HtmlPage:
    """Make the page of A minus B; the sweeps must have been read with their epochs."""
    first = results[0].verdict
    tasks = ", ".join(dict.fromkeys(result.task for result in results))
    page = HtmlPage(f"{first.a.name} against {first.b.name} on {tasks}")
    combined = across(results)
    if combined:
        page.verdict(f"{across_sentences(combined)[0]}.")
    for result in results:
        if len(results) > 1:
            page.heading(f"{result.sweep} ({result.task})")
        if result.pool.running:
            page.text("The sweep is still running: the results are preliminary.")
        add_verdict(page, result.verdict)
    if combined:
        page.heading("Over tasks")
        page.table(across_rows(combined))
        page.text(*across_sentences(combined))
    for result in results:
        _sweep(page, result, f"{result.sweep}: " if len(results) > 1 else "")
    return page


def _sweep(page: HtmlPage, result: OnSweep, prefix: str) -> None:
    scores, pool, verdict = result.scores, result.pool, result.verdict
    if verdict.curves:
        page.heading(f"{prefix}Difference against layer speed-up")
        page.figure((difference_curve(verdict), curves_caption(verdict, ["difference"])))
    _by_exit(page, result, prefix)
    tops = {name: best(side) for name, side in sides(scores, pool.state.history()).items() if completed(side)}
    if len(tops) == 2:
        draw_best(page, pool, tops, colours(verdict), prefix=prefix)
    else:
        page.text("Patience curves and weights need a completed configuration on each side.")
    page.heading(f"{prefix}Mean over exits, and each exit")
    page.text(f"Sweep {result.sweep}: {verdict.a.name} minus {verdict.b.name}, paired by configuration and run.")
    page.table(rows(scores))
    page.text(*sentences(scores))
    if result.layers:
        each = ", ".join(f"{result.name_of(key)} {layers:.2f}" for key, layers in result.layers.items())
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


def _by_exit(page: HtmlPage, result: OnSweep, prefix: str) -> None:
    """Add the scores of both sides by exit, a chart for each combination of the options that only one side has."""
    history = result.pool.state.history()
    page.heading(f"{prefix}Score by exit")
    interval = result.pool.score_interval
    panels = {f"{line.a} and {line.b}": figures.depth_bands(line, history, interval) for line in result.scores.lines}
    panels = {title: curves for title, curves in panels.items() if curves}
    if not panels:
        page.text("The scores of the exits are not recorded.")
        return
    words = figures.band_in_words(min(len(line.cells) for line in result.scores.lines))
    caption = f"Score of each exit at the best epoch, averaged over the compared pairs: {words}."
    span = charts.common_span([curve for curves in panels.values() for curve in curves.values()])
    tints, alone = colours(result.verdict), len(panels) == 1
    page.figure(
        *(
            (
                charts.bands(
                    curves, "exit layer", "validation score (%)", tints, title="" if alone else title, span=span
                ),
                caption,
            )
            for title, curves in panels.items()
        )
    )


def sides(scores: Comparison, history: History) -> dict[str, History]:
    """Return the compared configurations of A and of B, by the sides' names."""
    return {
        side_name(scores.option, value): tuple(c for c in history if c.id in ids)
        for value, ids in zip((scores.a, scores.b), scores.sides, strict=True)
    }


def draw_best(
    page: HtmlPage,
    pool: SweepPool,
    tops: Mapping[str, Configuration],
    tints: Sequence[str],
    *,
    prefix: str = "",
) -> None:
    """Draw patience curves and learned weights of the best configurations.

    Args:
        page: The page.
        pool: The sweeps of the configurations.
        tops: The best configuration by name of its side or method.
        tints: A colour for each of them.
        prefix: Start of the headings, such as the name of a sweep.
    """
    page.heading(f"{prefix}Patience")
    history = pool.state.history()
    names = dict(zip((c.id for c in history), short_names([c.values for c in history]), strict=True))
    # A method with one configuration has the name of its side.
    best_of = [names[c.id] for name, c in tops.items() if names[c.id] != name]
    try:
        metric = pool.manifest["metric"]
        curves = {name: figures.patience_points(pool.homes[c.id], pool.state, c, metric) for name, c in tops.items()}
    except (LeebertError, OSError) as error:
        page.text(f"No patience curves: {error}")
    else:
        by_score, by_layers = charts.patience(curves, tints)
        page.figure((by_score, "Score at each patience."), (by_layers, "Mean exit layer at each patience."))
        page.text("The best configuration of each under the exit criterion patience, means over runs.")
    if best_of:
        page.text(f"The best configurations: {'; '.join(best_of)}.")
    page.heading(f"{prefix}Learned weights over time")
    maps = [
        (f"{name}: {figures.TERMS[term]}", weights)
        for name, c in tops.items()
        for term, weights in figures.omega_maps(pool.state, c, _teachers(pool, c)).items()
    ]
    if not maps:
        page.text("No learned weights are recorded.")
        return
    low, high = charts.weight_range([weights for _, weights in maps])
    page.figure(*((charts.heat_map(title, weights, low, high), "") for title, weights in maps))
    page.text(
        "Loss weights ω of the same configurations by exit and epoch, means over runs up to the end of the shortest run. "
        "Distillation: mean over the terms in which the exit is a student. "
        f"All weights start at 1, the middle of the colours; all maps have the range {low:.2g} to {high:.2g}."
    )


def _teachers(pool: SweepPool, c: Configuration) -> str:
    """Return a configuration's teacher set."""
    config = pool.spec.train_config(c.values)
    return METHODS[config.algorithm].teachers or config.teachers
