"""Score against mean exit layer of a sweep's methods, as a chart for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from leebert.text_chart import Points, line_chart, supports_unicode
from leebert.tradeoff import Tradeoff, mean_curve
from tune.analysis.labels import short_names
from tune.analysis.tradeoff import RankingObjective, curves_or_none
from tune.store.folder import SweepFolder
from tune.store.history import Configuration
from tune.store.ranking import completed, score

#: The most curves of a chart: more can't be told apart.
MOST = 6


def sweep_chart(folder: SweepFolder, width: int = 78, unicode: bool | None = None) -> list[str]:
    """Draw the curve of each method's best configuration, the mean over its runs.

    Args:
        folder: The sweep's folder.
        width: Width in characters.
        unicode: Whether to use other characters than ASCII; None: if stdout can print them.

    Returns:
        The lines, of the best :data:`MOST` methods; none if no configuration has curves.
    """
    state = folder.ledger.read()
    metric = str(folder.manifest["metric"])
    replayed = curves_or_none(folder.path, state.cells, metric)
    curves = {}
    for one in _best_of_each(completed(state.history())):
        runs = [replayed[key] for cell in one.cells if (key := (one.id, cell.seed, cell.fold)) in replayed]
        if runs:
            curves[one.id] = (one, runs)
    shown = list(curves.values())[:MOST]
    names = short_names([one.values for one, _ in shown])
    return curves_chart(dict(zip(names, (runs for _, runs in shown), strict=True)), metric, width, unicode)


def curves_chart(
    curves: Mapping[str, Sequence[Tradeoff]], metric: str, width: int = 78, unicode: bool | None = None
) -> list[str]:
    """Draw curves of runs, each the mean of several.

    Args:
        curves: The curves of the runs that are averaged, by name.
        metric: The task's metric.
        width: Width in characters.
        unicode: Whether to use other characters than ASCII; None: if stdout can print them.

    Returns:
        The lines; none without curves.
    """
    if not curves:
        return []
    unicode = supports_unicode() if unicode is None else unicode
    depth = next(iter(curves.values()))[0].depth
    times = "×" if unicode else "x"
    every = max(1, round(depth / 6))
    ticks = {float(m): f"{m} ({depth / m:.2g}{times})" for m in (1, *range(every, depth + 1, every))}
    points: dict[str, Points] = {}
    for name, runs in curves.items():
        layers, scores = mean_curve(runs)
        points[name] = (layers.tolist(), (100 * scores).tolist())
    return line_chart(
        points,
        x_ticks=ticks,
        x_label="mean exit layer (layer speed-up)",
        y_label=f"{metric.replace('_', ' ')}, %, on validation folds; exits by {RankingObjective().under}",
        width=width,
        unicode=unicode,
    )


def _best_of_each(configurations: Sequence[Configuration]) -> list[Configuration]:
    """Return each method's best configuration, the best first."""
    ranked = sorted(configurations, key=lambda one: score(one).mean, reverse=True)
    best: dict[object, Configuration] = {}
    for one in ranked:
        best.setdefault(one.values["algorithm"], one)
    return list(best.values())
