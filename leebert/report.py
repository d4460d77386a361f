"""Evaluate a saved model on a split, and print training and evaluation results as tables."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leebert.config import ExitConfig
from leebert.console import sentence, table
from leebert.evaluate import RecordedLogits, record_all
from leebert.exits import named
from leebert.exits.patience import default_patience
from leebert.exits.replay import make_criterion
from leebert.kinds import kind_of_model
from leebert.latency import TIMED, exit_milliseconds, time_criteria
from leebert.majority import AgainstMajority, against_majority, in_words
from leebert.metrics import per_exit
from leebert.milliseconds import ExitMilliseconds
from leebert.runtime import Runtime
from leebert.tradeoff import SPEED_UP, replay_point, tradeoffs


def evaluation(recorded: RecordedLogits, metric: str) -> dict[str, Any]:
    """Score recorded logits at every exit and under every usable exit criterion.

    Args:
        recorded: Logits (M, N, K) with labels.
        metric: Name of the task's metric.

    Returns:
        JSON-ready values. `exits` holds each measure by exit; `curves` the points of every criterion; `table` the points
        in steps of mean exit layer; `within` the point of fewest layers with a drop in score of at most one point;
        `at_speed_up` the point nearest to a layer speed-up of 2; `majority` the comparison with the majority class.
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
    time_exits: Callable[..., ExitMilliseconds] = exit_milliseconds,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[str, Any]:
    """Evaluate a saved model on a split in one pass, and measure wall-clock times on some samples.

    Args:
        model: The saved model.
        tokenizer: Its tokenizer; None for images.
        examples: The labelled samples of the split.
        metric: Name of the task's metric.
        runtime: Device and precision.
        exits: Exit criteria with thresholds to score and time. Without any, the model's own criterion is scored, and
            the points nearest to a layer speed-up of 2 are timed.
        batch_size: Samples per forward pass.
        timed_rows: Number of samples to time at batch size 1; 0: none.
        time_exits: Measures the time up to each exit.
        progress: Wraps the iteration over batches, such as a progress bar.

    Returns:
        The values of :func:`evaluation`, with `chosen` (one point for each of `exits`) or `own`, `truncated_rows`, and
        `wall_clock` and `milliseconds`, the time up to each exit; with these, every point has its own `milliseconds`.
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
            in_use = exits[0] if exits else model.config.exits
            criterion = make_criterion(
                in_use.criterion, in_use.threshold, in_use.patience, num_exits=model.num_exits,
                num_classes=recorded.logits.shape[2],
            )  # fmt: skip
            timed = min(timed_rows, TIMED)
            add_milliseconds(result, time_exits(model, rows, criterion, runtime, timed))
    return result


def add_milliseconds(result: dict[str, Any], times: ExitMilliseconds) -> None:
    """Add the mean wall-clock time per sample to every operating point of an evaluated split.

    Args:
        result: The values of :func:`evaluation`; changed in place.
        times: The time up to each exit.
    """
    result["milliseconds"] = times.as_dict()
    by_criterion = [*result["curves"].values(), *result["table"].values()]
    single = [*result["within"].values(), *result["at_speed_up"].values(), *result.get("chosen", ())]
    for point in [*(p for points in by_criterion for p in points), *single, *filter(None, [result.get("own")])]:
        point["milliseconds"] = float(times.mean(point["exits"]))


def print_stages(stages: Sequence[Mapping[str, Any]], length: float) -> None:
    """Print the stages of a training run, as in `training.json`; a single stage is not printed."""
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
    tokens = "" if length == 1 else f" ({length:.0f} tokens)"
    title = f"End of each stage; multiply-adds per sample{tokens} through all layers"
    columns = ("stage", "epochs", "parameters", "multiply-adds", "exits", "mean over exits", "last exit")
    Console().print(table(columns, rows, title=title))


#: Shown instead of a speed-up if no exit scores above the majority class.
NO_SPEED_UP = "no speed-up is claimed, since no exit scores above the majority class"


#: Shown instead of a speed-up if all samples of a split have one label.
ONE_LABEL = "no speed-up is claimed, since all samples have the same label"


def speed_up_counts(majority: Mapping[str, Any] | None) -> bool:
    """Whether to report a model's speed-up: an exit scores above the majority class, or no comparison exists."""
    return not majority or AgainstMajority.of(majority).above


def one_label(result: Mapping[str, Any]) -> bool:
    """Whether all samples of an evaluated split have one label, so that no score shows learning."""
    return "majority" in result and result["majority"] is None


def score_loss(result: Mapping[str, Any], point: Mapping[str, Any]) -> float:
    """Compute the drop in score of an operating point on an evaluated split.

    Args:
        result: What :func:`evaluate_split` returned.
        point: One of its points.

    Returns:
        Score of the full model minus that of the point, as a fraction.
    """
    return float(result["exits"]["score"][-1] - point["measures"]["score"])


def claims_speed_up(result: Mapping[str, Any]) -> bool:
    """Whether to report the speed-up on an evaluated split (:func:`speed_up_counts`, :func:`one_label`)."""
    return speed_up_counts(result.get("majority")) and not one_label(result)


def print_chosen(chosen: Mapping[str, Any] | None, samples: int, majority: Mapping[str, Any] | None = None) -> None:
    """Print the exit criterion and threshold that training chose on the validation fold.

    Args:
        chosen: The operating point of `training.json`; None prints nothing.
        samples: Samples of the validation fold.
        majority: The fold's comparison with the majority class. If no exit is above it, no speed-up is printed.
    """
    from leebert.operating_point import in_words as point_in_words
    from leebert.operating_point import points
    from leebert.thresholds import Chosen

    if not chosen:
        return
    point = Chosen(**chosen)
    line = point_in_words(point)
    if not speed_up_counts(majority):
        line = f"exit criterion {point.name}, threshold {point.threshold:.6g}: {NO_SPEED_UP}"
    sentence(f"{line} on the validation fold ({samples} samples)")
    if point.max_loss is not None and point.reached <= 1:
        sentence(
            f"  under {point.name}, no sample can exit early with a drop in score of at most {points(point.max_loss)}"
        )
    elif not point.near:
        sentence(f"  {point.shortfall}")


#: Operating points that are shown of the exit criterion in use.
SHOWN = 8


def print_evaluation(split: str, result: dict[str, Any], names: Sequence[str] = (), *, every: bool = False) -> None:
    """Print the exits of one split, operating points of the exit criterion in use, and the comparison with the majority class.

    Args:
        split: Name of the split.
        result: What :func:`evaluate_split` returned.
        names: Names of the classes, by id.
        every: Whether to print all criteria and points.
    """
    from rich.console import Console

    console = Console()
    measures = list(result["exits"])
    _print_exits(console, split, result, measures)
    if every:
        _print_every_criterion(console, split, result, measures)
    else:
        _print_in_use(console, split, result, measures)
    if own := result.get("own"):
        threshold = "" if own["threshold"] is None else f", threshold {own['threshold']:.6g}"
        no_claim = ONE_LABEL if one_label(result) else NO_SPEED_UP
        speed = f"{own['speed_up']:.2f}× layer speed-up" if claims_speed_up(result) else no_claim
        milliseconds = f", {own['milliseconds']:.3g} ms per sample" if "milliseconds" in own else ""
        sentence(
            f"the model's exit criterion {named(own['criterion'], own['patience'])}{threshold}: mean exit layer "
            f"{own['layers']:.2f}{milliseconds}, {speed}; score {100 * own['measures']['score']:.2f}"
        )
    times = result.get("wall_clock")
    if times and every:
        _print_times(console, split, times)
    elif times and claims_speed_up(result):
        _print_time_in_use(result, times)
    if result.get("truncated_rows"):
        print(f"{result['truncated_rows']} samples were truncated to the model's maximum length")
    if majority := result.get("majority"):
        sentence(f"{split}: {in_words(AgainstMajority.of(majority), names)}")
    elif one_label(result):
        sentence(f"{split}: all samples have the same label, so their scores do not show whether the model has learned")


def _print_in_use(console: Any, split: str, result: Mapping[str, Any], measures: Sequence[str]) -> None:
    """Print at most :data:`SHOWN` operating points of the exit criterion in use, from the fastest to the whole model."""
    own, tables = result.get("own") or {}, result["table"]
    name = next((n for n, points in tables.items() if points and points[0]["criterion"] == own.get("criterion")), None)
    name = name or next(iter(tables), None)
    if name is None:
        return
    points = tables[name]
    kept = sorted({round(i) for i in np.linspace(0, len(points) - 1, min(SHOWN, len(points)))})
    title = f"{split}: thresholds of {name}"
    _print_points(console, title, {name: [points[i] for i in kept]}, measures)


def _print_time_in_use(result: Mapping[str, Any], times: Sequence[Mapping[str, Any]]) -> None:
    """Print the wall-clock time of the criterion in use, near a layer speed-up of 2."""
    criterion = (result.get("own") or {}).get("criterion")
    timed = next((t for t in times if t["criterion"] == criterion), None)
    if timed is not None and timed["threshold"] is not None:
        sentence(
            f"wall-clock time at batch size 1, at a layer speed-up of {timed['layer_ratio']:.2f}: {timed['milliseconds']:.2f} ms "
            f"per sample, {timed['speed_up']:.2f}× wall-clock speed-up"
        )


def _print_every_criterion(console: Any, split: str, result: Mapping[str, Any], measures: Sequence[str]) -> None:
    """Print the operating points of all criteria in steps of layers, and the fastest ones within a point of score."""
    _print_points(console, f"{split}: every exit criterion, in steps of mean exit layer", result["table"], measures)
    if claims_speed_up(result):  # a model that predicts a single class loses nothing by exiting first
        within = {name: [point] for name, point in result["within"].items()}
        title = f"{split}: fastest thresholds at most 1 point below the full model"
        _print_points(console, title, within, measures)


def _print_exits(console: Any, split: str, result: Mapping[str, Any], measures: Sequence[str]) -> None:
    """Print a table of every exit's measures, their means, and the majority class's score."""
    exits, times = result["exits"], result.get("milliseconds")
    rows: list[Sequence[str] | None] = [
        (
            str(i + 1), *(f"{100 * exits[name][i]:.2f}" for name in measures),
            *((f"{times['exits'][i]:.3g}",) if times else ()),
        )
        for i in range(len(exits["score"]))
    ]  # fmt: skip
    blank = ("",) if times else ()
    rows += [None, ("mean", *(f"{100 * float(np.mean(exits[name])):.2f}" for name in measures), *blank)]
    if majority := result.get("majority"):
        rows.append(("majority class", *([""] * (len(measures) - 1)), f"{100 * majority['score']:.2f}", *blank))
    columns = ("exit", *measures, *(("ms",) if times else ()))
    console.print(table(columns, rows, title=f"{split}: {result['rows']} samples, every exit", left=0))
    if times:
        slow = "; other processes disturbed the measurement" if times["disturbed"] else ""
        sentence(f"ms: wall-clock time per sample up to the exit, at batch size 1 in {times['measured']}{slow}")


def _print_times(console: Any, split: str, times: Sequence[Mapping[str, Any]]) -> None:
    """Print a table of wall-clock times."""
    rows = [
        (
            named(t["criterion"], t["patience"]), "" if t["threshold"] is None else f"{t['threshold']:.4g}",
            f"{t['milliseconds']:.2f}", f"{t['speed_up']:.2f}", f"{t['layer_ratio']:.2f}",
        )
        for t in times
    ]  # fmt: skip
    title = f"{split}: wall-clock time at batch size 1, at a layer speed-up near {SPEED_UP:g}"
    columns = ("criterion", "threshold", "ms per sample", "wall-clock speed-up", "layer speed-up")
    console.print(table(columns, rows, title=title, whole=1, framed=False))


def _print_points(
    console: Any, title: str, by_criterion: Mapping[str, Sequence[Mapping[str, Any]]], measures: Sequence[str]
) -> None:
    """Print a table of points by criterion."""
    if len(measures) == 2:  # with one measure, the score is a copy of it
        measures = [name for name in measures if name != "score"]
    timed = all("milliseconds" in p for points in by_criterion.values() for p in points)
    rows: list[Sequence[str] | None] = []
    for points in by_criterion.values():
        for p in points:
            threshold = f"{p['threshold']:.6g}"  # enough digits to reproduce the layers
            # The saving, 1 - 1 / speed-up, gives way to the milliseconds, to fit 80 columns.
            speed = f"{p['milliseconds']:.3g}" if timed else f"{100 * p['saving']:.1f}%"
            rows.append(
                (
                    named(p["criterion"], p["patience"]), threshold, f"{p['layers']:.2f}", speed,
                    f"{p['speed_up']:.2f}", *(f"{100 * p['measures'][name]:.2f}" for name in measures),
                )
            )  # fmt: skip
        if len(points) > 1:
            rows.append(None)
    columns = ("criterion", "threshold", "layers", "ms" if timed else "saving", "speed-up", *measures)
    # Lean, to fit 80 columns: a truncated threshold can't be copied.
    console.print(table(columns, rows, title=title, whole=len(columns), lean=True))
