"""Saved views of a sweep in MLflow's UI, as data: which runs, which charts, which columns. This module asks no server.

The format is MLflow's own and undocumented; it is that of `KNOWN_VERSIONS`. MLflow silently drops the parts of a view that
it does not understand, so the tests check every view in a browser.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from leebert.methods import METHODS, applies
from tune.analysis.labels import algorithm_label
from tune.analysis.verdict import preferred_first
from tune.space import SweepSpec
from tune.store.ledger import SweepState
from tune.tracking import names
from tune.tracking.events import View
from tune.tracking.server import quoted

#: Minor versions of MLflow in which every view was checked in a browser.
KNOWN_VERSIONS = ("3.17", "3.18")

#: The number of runs that the UI loads, however many match the filter; it computes averages of groups over these.
LOADED_RUNS = 100

_ENCODED = "deflate;"
_SCORE, _DEVIATION, _LAYERS = "cv/score_pct", "cv/score_std_pct", "cv/layers"

ViewState = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ViewContents:
    """The facts of a sweep, besides its name, that its views depend on.

    Attributes:
        algorithms: The sweep's methods.
        shared: The swept options that every method uses.
        others: The swept options that only some methods use.
        complete: The number of completed configurations.
        begun: The number of configurations, pruned, failed and running ones included.
    """

    algorithms: tuple[str, ...]
    shared: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    complete: int = 0
    begun: int = 0


def view_contents(spec: SweepSpec, state: SweepState) -> ViewContents:
    """Collect the contents of the views from a sweep's current state."""
    complete = [c.id for c in state.history() if c.state == "complete"]
    # An option with one value distinguishes nothing.
    swept = [option for option, values in spec.space.items() if values.count != 1]
    options = {o: all(applies(o, a) for a in spec.algorithms) for o in swept}
    return ViewContents(
        algorithms=spec.algorithms,
        shared=tuple(o for o, all_use_it in options.items() if all_use_it),
        others=tuple(o for o, all_use_it in options.items() if not all_use_it),
        complete=len(complete),
        begun=len(state.configs),
    )


def saved_views(sweep: str, of: ViewContents) -> tuple[View, ...]:
    """Return the views of one sweep, the most important first."""
    return (
        View("clo-vs-blo", f"{sweep}: {_title(of.algorithms)}", _algorithms(sweep, of)),
        View("speed", f"{sweep}: speed", _speed(sweep, of)),
        View("configurations", f"{sweep}: options", _configurations(sweep, of)),
        View("summary", f"{sweep}: summary", _summary(sweep)),
    )


def view_key(sweep: str, view: View) -> str:
    """Return MLflow's key of a view, always the same, so that a view written again replaces the old one."""
    return f"{sweep}.{view.slug}"


def encoded(view: View, created: int, updated: int) -> str:
    """Encode a view as the value of an experiment's tag.

    Args:
        view: The view.
        created: Time of its creation, in ms since 1970.
        updated: Time of its last change, in ms since 1970.

    Returns:
        The value of the tag.
    """
    packed = base64.b64encode(zlib.compress(json.dumps(view.state, sort_keys=True).encode())).decode()
    whole = {"name": view.name, "createdAt": created, "updatedAt": updated, "state": _ENCODED + packed}
    return json.dumps(whole)


def decoded(value: str) -> tuple[str, ViewState, int]:
    """Decode name, state and time of creation (ms) from a tag's value. ValueError for a view of another program."""
    try:
        whole = json.loads(value)
        packed = whole["state"].removeprefix(_ENCODED)
        return whole["name"], json.loads(zlib.decompress(base64.b64decode(packed))), int(whole["createdAt"])
    except (zlib.error, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"no saved view: {error}") from None


# The four views.


def _algorithms(sweep: str, of: ViewContents) -> ViewState:
    sections = [
        _Section("verdict", _verdict_title(of.algorithms), [_pictures(_VERDICT)], 1, _TWO_PICTURES),
        _Section("exits", "Scores and loss weights ω by exit", [_pictures(_BY_EXIT)], 1, _TWO_PICTURES),
    ]
    return _of_summaries(sweep, sections)


def _speed(sweep: str, of: ViewContents) -> ViewState:
    part = _part(of.complete)
    curve = _line(names.SCORE_AXIS, over=names.SPEED_UP_AXIS, points=False)
    sections = [
        _Section("curve", f"Score (%) against layer speed-up{part}", [curve], 1, 620),
        _Section("points", f"Score (%) against layers needed{part}", [_scatter(_LAYERS, _SCORE)], 1, 440),
    ]
    return _state(_filter(sweep, "config", "complete"), _config_columns(of), sections)


def _configurations(sweep: str, of: ViewContents) -> ViewState:
    axes = [f"log10_{o}" if o in ("lr_theta", "lr_omega") else o for o in of.shared]
    every = [f"log10_{o}" if o in ("lr_theta", "lr_omega") else o for o in (*of.shared, *of.others)]
    parallel = [_parallel("all", [*axes[:1], "variant", *axes[1:]])]  # the first axis would cut off its labels
    # MLflow drops each run that lacks one of the axes: a second chart shows those that have all.
    if of.others:
        parallel.append(_parallel("some", every))
    scatters = [_scatter(axis, _SCORE, "PARAM") for axis in every] + [_scatter(_DEVIATION, _SCORE)]
    against = "each option" if every else "its standard deviation over runs"
    part = _part(of.begun)
    sections = [
        _Section("parallel", f"Configurations, coloured by score{part}", parallel, 1, 400),
        _Section("scatter", f"Score against {against}{part}", scatters, 3 if every else 1, 320),
    ]
    return _state(_filter(sweep, "config"), _config_columns(of), sections)


def _summary(sweep: str) -> ViewState:
    sections = [
        _Section("overview", "Scores and differences of all methods", [_pictures(_OVERVIEW)], 1, _TWO_PICTURES),
        _Section("exits", "Scores and differences by exit", [_pictures(_OVERVIEW_BY_EXIT)], 1, _TWO_PICTURES),
    ]
    return _of_summaries(sweep, sections)


def _of_summaries(sweep: str, sections: Sequence[_Section]) -> ViewState:
    """Make a view of the sweep's summaries."""
    ends = [f"{key}{end}" for key in ("paired/diff_pct", "summary/score_pct") for end in ("", "_low", "_high")]
    metrics = (*ends, "paired/pairs", "summary/configs")
    columns = {"attributes.`Description`": 420} | {f"metrics.`{metric}`": 150 for metric in metrics}
    return _state(_filter(sweep, "summary"), columns, sections, kind="summary", order="tags.`mlflow.runName`")


#: The pictures of the cards.
_VERDICT = (names.VERDICT, names.SPEED_UP_CURVES)
_BY_EXIT = (names.SCORE_BY_EXIT, names.WEIGHTS_BY_EXIT)
_OVERVIEW = (names.SCORES, names.DIFFERENCES)
_OVERVIEW_BY_EXIT = (names.SCORE_BY_EXIT, names.DIFFERENCES_BY_EXIT)

#: Height of a card in which two pictures are visible at a window of 1,920 pixels.
_TWO_PICTURES = 1700

#: What axes of scatter charts are called; others have the name of their metric or parameter.
_AXES = {
    _SCORE: "score (%)",
    _DEVIATION: "sd over runs (points)",
    _LAYERS: "layers needed",
    "log10_lr_theta": "log10 λ1",
    "log10_lr_omega": "log10 λ2",
    "cycle_length": "C",
    "batch_size": "batch size",
}

_BARS = (_SCORE, _DEVIATION, _LAYERS)


# Their parts.


@dataclasses.dataclass(frozen=True)
class _Section:
    id: str
    title: str
    cards: Sequence[ViewState]
    columns: int
    height: int


def _state(
    where: str,
    columns: Mapping[str, int],
    sections: Sequence[_Section],
    *,
    kind: names.RunKind = "config",
    order: str = f"metrics.`{_SCORE}`",
    **more: Any,
) -> ViewState:
    cards = [{**card, "metricSectionId": section.id} for section in sections for card in section.cards]
    shown = {card["metricKey"] for card in cards if "metricKey" in card}
    # MLflow adds a card for each metric without one, in a separate section, unless the metric has a deleted card.
    cards += [
        {"uuid": f"no-{metric}", "type": "BAR", "metricSectionId": sections[0].id, "metricKey": metric, "deleted": True,
         "isGenerated": True}
        for metric in _metrics(kind) if metric not in shown
    ]  # fmt: skip
    # Likewise for each picture, unless a card shows it alone.
    cards += [
        {
            **_pictures([key]),
            "uuid": f"no-{key}",
            "metricSectionId": sections[0].id,
            "deleted": True,
            "isGenerated": True,
        }
        for key in (names.PICTURES if kind == "summary" else ())
    ]
    return {
        "searchFilter": where,
        "orderByKey": order,
        "orderByAsc": False,
        "selectedColumns": list(columns),
        "columnOrder": ["attributes.`Run Name`", "runDateAndNestInfo", *columns],
        "columnWidths": {"attributes.`Run Name`": 230, **columns},
        "runsHiddenMode": "SHOW_ALL",
        # The list of runs, which cuts their names, is folded away: charts and pictures fill the width.
        "runListHidden": True,
        "isAccordionReordered": True,
        "compareRunSections": [
            {"uuid": s.id, "name": s.title, "display": True, "isReordered": True, "columns": s.columns,
             "cardHeight": s.height}
            for s in sections
        ],
        "compareRunCharts": cards,
        **more,
    }  # fmt: skip


def _part(runs: int) -> str:
    """Return the note in a title for more runs than MLflow loads."""
    return f" (the best {LOADED_RUNS} only)" if runs > LOADED_RUNS else ""


def _filter(sweep: str, kind: names.RunKind, outcome: str | None = None) -> str:
    parts = [f"tags.sweep = {quoted(sweep)}", f"tags.kind = '{kind}'"]
    return " AND ".join([*parts, f"tags.outcome = '{outcome}'"] if outcome else parts)


def _metrics(kind: names.RunKind) -> Iterable[str]:
    return (line.pattern for line in names.NAMES if line.family == "metric" and kind in line.runs)


def _config_columns(of: ViewContents) -> dict[str, int]:
    """Return the columns of the table, with their widths in pixels."""
    metrics = {f"metrics.`{metric}`": 130 for metric in (*_BARS, "cv/cells")}
    params = {f"params.`{option}`": 110 for option in (*of.shared, *of.others)}
    return {"params.`variant`": 120, **metrics, **params, "tags.`outcome`": 110}


def _title(algorithms: Sequence[str]) -> str:
    """Name two to three families of methods ("CLO vs BLO" for CLO-v2 and BLO), in the charts' order."""
    methods = sorted(filter(None, map(METHODS.find, algorithms)), key=lambda method: method.chart_order)
    families = list(dict.fromkeys(re.sub(r"-v\d+$", "", method.label) for method in methods))
    return " vs ".join(families) if 2 <= len(families) <= 3 else "methods compared"


def _verdict_title(algorithms: Sequence[str]) -> str:
    """Name the two methods of the verdict."""
    sides = [algorithm_label(method) for method in preferred_first(algorithms)[:2]]
    return f"Verdict on {' and '.join(sides)}" if len(sides) == 2 else "Verdict"


def _card(id: str, type: str, **more: Any) -> ViewState:
    return {
        "uuid": id, "type": type, "deleted": False, "isGenerated": False, "runsCountToCompare": LOADED_RUNS, **more,
    }  # fmt: skip


def _line(metric: str, *, over: str, points: bool = True) -> ViewState:
    """Make lines of one metric over another one of the same steps, which labels the axis."""
    return _card(
        f"line-{metric}",
        "LINE",
        metricKey=metric,
        selectedMetricKeys=[metric],
        xAxisKey="metric",
        selectedXAxisMetricKey=over,
        useGlobalXaxisKey=False,
        lineSmoothness=0,
        useGlobalLineSmoothing=False,
        displayPoints=points,
    )


def _pictures(keys: Sequence[str]) -> ViewState:
    """Make a grid of pictures: one key alone would be shown at 250 pixels, several fill the width."""
    return _card(f"pictures-{keys[0]}", "IMAGE", imageKeys=list(keys), step=0, showRunParams=False)


def _scatter(x: str, y: str, kind: Literal["METRIC", "PARAM"] = "METRIC") -> ViewState:
    """Make a scatter chart. MLflow shows an axis' `key`, and reads the values of its `dataAccessKey`."""
    axes = {"xaxis": {"key": _AXES.get(x, x), "dataAccessKey": x, "type": kind},
            "yaxis": {"key": _AXES.get(y, y), "dataAccessKey": y, "type": "METRIC"}}  # fmt: skip
    return _card(f"scatter-{x}", "SCATTER", **axes)


def _parallel(id: str, params: Sequence[str]) -> ViewState:
    return _card(
        f"parallel-{id}", "PARALLEL", selectedParams=list(params), selectedMetrics=[names.MEAN_SCORE], showAllRuns=False
    )
