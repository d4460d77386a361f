"""An evaluation as data and as tables."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leebert.config import ExitConfig
from leebert.console import table
from leebert.evaluate import HeldOut, record_all
from leebert.exits import named
from leebert.exits.patience import default_patience
from leebert.kinds import kind_of_model
from leebert.latency import time_criteria
from leebert.majority import AgainstMajority, against_majority, in_words
from leebert.metrics import per_exit
from leebert.runtime import Runtime
from leebert.tradeoff import SPEED_UP, replay_point, tradeoffs


def evaluation(recorded: HeldOut, metric: str) -> dict[str, Any]:
    """All exits, and the curve of every criterion that M exits have a use for, as JSON-ready values.

    `within` holds each criterion's point of fewest layers with at most one point lost; `at_speed_up` the nearest to
    a layer speed-up of 2; `rows` under `table` those of a table in steps of layers.
    """
    assert recorded.labels is not None
    m, n, _ = recorded.logits.shape
    exits = {name: values.tolist() for name, values in per_exit(metric, recorded.labels, recorded.logits).items()}
    against = against_majority(recorded.logits, recorded.labels, metric)
    curves = tradeoffs(recorded, metric=metric)
    nearest = tradeoffs(recorded, metric=metric, speed_ups=[SPEED_UP])
    return {
        "rows": n,
        "exits": exits,
        "mean_over_exits": float(np.mean(exits["score"])),
        "majority": against.as_dict() if against else None,
        "default_patience": default_patience(m),
        "curves": {name: [point.as_dict() for point in curve] for name, curve in curves.items()},
        "table": {name: [point.as_dict() for point in curve.in_steps()] for name, curve in curves.items()},
        "within": {name: curve.within().as_dict() for name, curve in curves.items()},
        "at_speed_up": {name: curve.nearest(SPEED_UP).as_dict() for name, curve in nearest.items()},
    }


def evaluate_split(
    model: Any,
    tokenizer: Any,
    examples: Any,
    metric: str,
    runtime: Runtime,
    *,
    exits: Sequence[ExitConfig] = (),
    batch_size: int = 64,
    timed_rows: int = 50,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[str, Any]:
    """The :func:`evaluation` of a saved model on a split, from one pass, with wall-clock times of `exits` on a few rows.

    tokenizer: None for a model of images. `exits` stand under `chosen`; without any, the model's own
    stands under `own`, and those nearest to a layer speed-up of 2 are timed.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows = kind_of_model(model).encode(model, tokenizer, examples, Path(folder) / "rows.arrow")
        recorded = record_all(model, rows, runtime, batch_size, progress=progress)
        result = evaluation(recorded, metric)
        result["truncated_rows"] = int(rows.truncated)
        if exits:
            chosen = [replay_point(recorded, metric, r.criterion, r.threshold, r.patience) for r in exits]
            result["chosen"] = [point.as_dict() for point in chosen]
        else:
            own = model.config.exits
            result["own"] = replay_point(recorded, metric, own.criterion, own.threshold, own.patience).as_dict()
        if timed_rows:
            nearest = result["at_speed_up"].values()
            near = [ExitConfig(**{key: p[key] for key in ExitConfig.model_fields}) for p in nearest]
            result["wall_clock"] = time_criteria(model, rows, recorded, metric, exits or near, runtime, timed_rows)
    return result


def print_stages(stages: Sequence[Mapping[str, Any]], length: float) -> None:
    """The stages of a training run on stdout, as `training.json` tells them; nothing where there was one."""
    from rich.console import Console

    if len(stages) < 2:
        return
    rows = []
    for stage in stages:
        scores = (
            ("-", "-") if stage["score"] is None else (f"{100 * x:.2f}" for x in (stage["score"], stage["exits"][-1]))
        )
        rows.append(
            (
                stage["stage"], str(stage["epochs"]), f"{stage['parameters'] / 1e6:.2f} M",
                f"{stage['multiply_adds'][-1] / 1e6:.1f} M", str(len(stage["multiply_adds"])), *scores,
            )
        )  # fmt: skip
    of = "" if length == 1 else f" ({length:.0f} tokens)"
    title = f"at each stage's end; multiply-adds of a row{of} through all layers"
    columns = ("stage", "epochs", "parameters", "multiply-adds", "exits", "mean over exits", "last exit")
    Console().print(table(columns, rows, title=title))


#: What stands where a speed-up would, of a model that has none worth telling.
NO_SPEED_UP = "no speed-up is claimed, since no exit scores above the majority class"


#: The same where all samples of a split have one label.
ONE_LABEL = "no speed-up is claimed, since all samples have the same label"


def speed_up_counts(majority: Mapping[str, Any] | None) -> bool:
    """Whether a model's speed-up is worth telling: some exit scores above the majority class, or nothing is known of it."""
    return not majority or AgainstMajority.of(majority).above


def one_label(result: Mapping[str, Any]) -> bool:
    """Whether all samples of an evaluated split (:func:`evaluation`) have one label, so that no score shows learning."""
    return "majority" in result and result["majority"] is None


def lost(result: Mapping[str, Any], point: Mapping[str, Any]) -> float:
    """What a point of an evaluated split costs against the full model there, a fraction of score."""
    return float(result["exits"]["score"][-1] - point["measures"]["score"])


def told_speed_up(result: Mapping[str, Any]) -> bool:
    """Whether the speed-up on an evaluated split is worth telling (:func:`speed_up_counts`)."""
    return speed_up_counts(result.get("majority")) and not one_label(result)


def print_chosen(chosen: Mapping[str, Any] | None, samples: int, majority: Mapping[str, Any] | None = None) -> None:
    """The operating point that training chose on its validation fold, on stdout, as `training.json` tells it.

    majority: that fold's scores beside the majority class; the speed-up of a model without an exit above it is not told.
    """
    from leebert.operating_point import in_words as point_in_words
    from leebert.operating_point import points
    from leebert.thresholds import Chosen

    if not chosen:
        return
    point = Chosen(**chosen)
    told = point_in_words(point)
    if not speed_up_counts(majority):
        told = f"exit criterion {point.name}, threshold {point.threshold:.6g}: {NO_SPEED_UP}"
    print(f"{told} on the validation fold ({samples} samples)")
    if point.max_loss is not None and point.reached <= 1:
        print(f"  no threshold of it saves a layer within {points(point.max_loss)}")
    elif not point.near:
        print(f"  {point.shortfall}")


def print_evaluation(split: str, result: dict[str, Any], names: Sequence[str] = ()) -> None:
    """The tables of one split on stdout, and the verdict against the majority class. names: of the classes, by id."""
    from rich.console import Console

    console = Console()
    measures = list(result["exits"])
    _print_exits(console, split, result, measures)
    _print_points(console, f"{split}: exit criteria, in steps of layers", result["table"], measures)
    if told_speed_up(result):  # what answers one class throughout loses nothing by exiting first
        within = {name: [point] for name, point in result["within"].items()}
        _print_points(console, f"{split}: fewest layers with at most 1 point lost", within, measures)
    if own := result.get("own"):
        at = "" if own["threshold"] is None else f" at {own['threshold']:.6g}"
        why_not = ONE_LABEL if one_label(result) else NO_SPEED_UP
        faster = f"{own['speed_up']:.2f}× layer speed-up" if told_speed_up(result) else why_not
        print(
            f"the model's own exit criterion, {named(own['criterion'], own['patience'])}{at}: {own['layers']:.2f} layers, {faster}; score "
            f"{100 * own['measures']['score']:.2f}"
        )
    if times := result.get("wall_clock"):
        _print_times(console, split, times)
    if result.get("truncated_rows"):
        print(f"{result['truncated_rows']} rows were cut at the model's maximal length")
    if majority := result.get("majority"):
        print(f"{split}: {in_words(AgainstMajority.of(majority), names)}")
    elif one_label(result):
        print(f"{split}: all samples have the same label, so their scores do not show whether the model has learned")


def _print_exits(console: Any, split: str, result: Mapping[str, Any], measures: Sequence[str]) -> None:
    """A table of every exit's measures, their means, and the majority class's score."""
    exits = result["exits"]
    rows: list[Sequence[str] | None] = [
        (str(i + 1), *(f"{100 * exits[name][i]:.2f}" for name in measures)) for i in range(len(exits["score"]))
    ]
    rows += [None, ("mean", *(f"{100 * float(np.mean(exits[name])):.2f}" for name in measures))]
    if majority := result.get("majority"):
        rows.append(("majority class", *([""] * (len(measures) - 1)), f"{100 * majority['score']:.2f}"))
    console.print(table(("exit", *measures), rows, title=f"{split}: {result['rows']} rows, every exit", left=0))


def _print_times(console: Any, split: str, times: Sequence[Mapping[str, Any]]) -> None:
    """A table of wall-clock times."""
    rows = [
        (
            named(t["criterion"], t["patience"]), "" if t["threshold"] is None else f"{t['threshold']:.4g}",
            f"{t['milliseconds']:.2f}", f"{t['speed_up']:.2f}", f"{t['layer_ratio']:.2f}",
        )
        for t in times
    ]  # fmt: skip
    title = f"{split}: wall-clock time at batch size 1, nearest to the paper's speed-up"
    console.print(table(("criterion", "threshold", "ms per row", "speed-up", "layer ratio"), rows, title=title))


def _print_points(
    console: Any, title: str, by_criterion: Mapping[str, Sequence[Mapping[str, Any]]], measures: Sequence[str]
) -> None:
    """A table of points, criterion by criterion."""
    if len(measures) == 2:  # of one measure the score is its copy
        measures = [name for name in measures if name != "score"]
    rows: list[Sequence[str] | None] = []
    for points in by_criterion.values():
        for p in points:
            threshold = f"{p['threshold']:.6g}"  # so that the layers beside it come out again
            rows.append(
                (
                    named(p["criterion"], p["patience"]), threshold, f"{p['layers']:.2f}",
                    f"{100 * p['saving']:.1f}%", f"{p['speed_up']:.2f}",
                    *(f"{100 * p['measures'][name]:.2f}" for name in measures),
                )
            )  # fmt: skip
        if len(points) > 1:
            rows.append(None)
    columns = ("criterion", "threshold", "layers", "saving", "speed-up", *measures)
    # Lean enough for 80 columns: a threshold that is cut can't be copied.
    console.print(table(columns, rows, title=title, whole=len(columns), lean=True))
