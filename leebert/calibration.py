"""Calibrate a model's thresholds on unlabelled texts, to hit a target layer speed-up or loss.

Thresholds from cross-validation belong to models that trained on fewer samples and may be less confident than the served
model. Calibration runs the served model once through all layers on the texts.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leebert.card import recalibrated
from leebert.console import sentence
from leebert.data.sources import Examples
from leebert.errors import ConfigError, DataError
from leebert.evaluate import RecordedLogits, record_all
from leebert.exits import with_threshold
from leebert.exits.checks import choosable
from leebert.exits.criterion import Criterion, ExitCriterion
from leebert.exits.replay import make_criterion
from leebert.files import parse_json, write_together
from leebert.kinds import kind_of_model
from leebert.latency import exit_milliseconds
from leebert.majority import ADVICE
from leebert.metrics import collapsed
from leebert.milliseconds import ExitMilliseconds
from leebert.operating_point import Aim, within_loss
from leebert.runtime import Runtime
from leebert.thresholds import (
    FILE,
    MISSED,
    Chosen,
    attainable,
    check_speed_up,
    choose,
    curves,
    curves_as_json,
    layer_speed_up,
    read_curves,
    rows_needed,
    speed_up_interval,
)
from leebert.tradeoff import Tradeoff, tradeoff


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The calibrated thresholds of a model.

    Attributes:
        own: The model's new exit criterion and threshold.
        chosen: Every criterion with its threshold for the aim, by name.
        expected: Layer speed-up to expect on similar texts, (low, high) at 95 %, by the criterion's name.
        rows: Number of texts.
        cut: Number of texts that were truncated.
        source: Name of the texts.
        num_exits: M.
        curves: Layer speed-up by threshold, as in :func:`leebert.thresholds.curves`.
        single_class: Whether every exit predicts one class for all texts; the speed-up is then meaningless.
        times: The wall-clock time up to each exit, if the aim is a time; else None.
        milliseconds: The mean time per text at the model's new threshold, if the aim is a time.
    """

    own: Chosen
    chosen: dict[str, Chosen]
    expected: dict[str, tuple[float, float]]
    rows: int
    cut: int
    source: str
    num_exits: int
    curves: dict[str, list[list[float]]]
    single_class: bool = False
    times: ExitMilliseconds | None = None
    milliseconds: float | None = None

    @property
    def chosen_on(self) -> str:
        """The texts of the calibration, in words."""
        return f"{self.rows} unlabelled texts of {self.source}, recorded with this model"

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values without the curves."""
        chosen = {
            name: {**dataclasses.asdict(one), "expected": list(self.expected[name])}
            for name, one in self.chosen.items()
        }
        return {
            "criterion": self.own.criterion,
            "rows": self.rows,
            "cut": self.cut,
            "source": self.source,
            "single_class": self.single_class,
            "chosen": chosen,
            **({"milliseconds": self.milliseconds, "times": self.times.as_dict()} if self.times else {}),
        }


def calibrate(
    model: Any,
    tokenizer: Any,
    texts: Sequence[tuple[str, ...]],
    source: str,
    aim: Aim,
    criterion: str,
    runtime: Runtime,
    *,
    validated: Sequence[Tradeoff] = (),
    batch_size: int = 64,
    time_exits: Callable[..., ExitMilliseconds] = exit_milliseconds,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Calibration:
    """Run the texts once through all layers and choose the threshold of every criterion for an aim.

    For a target speed-up, the threshold comes from the texts, and for a largest time per text, too: the time up to each exit is
    measured on this machine, and the largest mean exit layer within it gives the layer speed-up. For a largest drop in score, it comes from the model's validation
    curves, since the texts have no labels; the texts then give its layer speed-up.

    Args:
        model: The saved model.
        tokenizer: Its tokenizer; None for images.
        texts: N texts or pairs of texts.
        source: Their name, for messages.
        aim: The target layer speed-up, the largest drop in score, or the largest mean time per text.
        criterion: The exit criterion that becomes the model's own.
        runtime: Device and precision.
        validated: The model's validation curves (:func:`leebert.operating_point.saved_tradeoffs`).
        batch_size: Samples per forward pass.
        time_exits: Measures the time up to each exit, for a largest time.
        progress: Wraps the iteration over batches, such as a progress bar.

    Returns:
        The thresholds and curves; :func:`save_calibration` writes them.

    Raises:
        ConfigError: The model has no such criterion, or can't reach the aim.
        DataError: There are too few different texts, or no threshold attains the speed-up.
    """
    if model.num_exits == 1:
        raise ConfigError("this model has one exit, so it has no threshold to calibrate; train it with several exits")
    own_row = choosable(criterion)
    patience = model.config.exit_patience if own_row.name == model.config.exit_strategy else None
    patience = own_row.counted(patience, model.num_exits)
    recorded: RecordedLogits | None = None
    cut, times = 0, None
    if aim.max_loss is not None:
        speed_up = within_loss(validated, own_row.name, patience, aim.max_loss).reached
    elif aim.milliseconds is not None:
        _check_count(texts, source, model, attainable(model.exit_layers, model.depth)[0])
        criterion_ = _timed(own_row, patience, model)
        recorded, cut, times = _recorded(
            model, tokenizer, texts, source, runtime, batch_size, progress,
            lambda rows: time_exits(model, rows, criterion_, runtime),
        )  # fmt: skip
        assert times is not None
        speed_up = times.speed_up_within(tradeoff(recorded, own_row.name, patience), aim.milliseconds)
    else:
        assert aim.speed_up is not None
        speed_up = check_speed_up(aim.speed_up, model.exit_layers, model.depth)
    _check_count(texts, source, model, speed_up)
    if recorded is None:
        recorded, cut, _ = _recorded(model, tokenizer, texts, source, runtime, batch_size, progress)
    if aim.max_loss is not None:
        own, chosen = _within_loss(recorded, validated, own_row.name, patience, aim.max_loss)
    else:
        own = choose(recorded, own_row.name, speed_up, patience)
        chosen = {name: choose(recorded, name, speed_up) for name in with_threshold()} | {own_row.name: own}
        if not own.near and not own_row.whole:
            raise DataError(f"{source}: {own.shortfall}; set --speed-up to that, or give other texts")
    expected = {name: speed_up_interval(recorded, name, one.threshold, one.patience) for name, one in chosen.items()}
    own_curves = curves(recorded, own.patience)
    single_class = bool(collapsed(recorded.logits).all())
    mean = None if times is None else float(times.at_layers(model.depth / own.reached))
    return Calibration(
        own, chosen, expected, len(texts), cut, source, model.num_exits, own_curves, single_class, times, mean
    )


def _check_count(texts: Sequence[tuple[str, ...]], source: str, model: Any, speed_up: float) -> None:
    """Raise DataError if there are too few different texts for a layer speed-up."""
    needed = rows_needed(speed_up, model.exit_layers, model.depth)
    differing = len(set(texts))  # a repeated text adds no information
    if differing < needed:
        count = f"{differing} different texts" if texts else "no texts"
        raise DataError(
            f"{source}: {count}; a layer speed-up of {speed_up:g} with {model.depth} layers needs at least {needed} different "
            f"texts, so that similar texts reach it within {MISSED:.0%}; add texts"
        )


def _timed(row: Criterion, patience: int | None, model: Any) -> ExitCriterion:
    """Make a criterion to time; any threshold will do, since timing lets no sample exit."""
    exits, classes = model.num_exits, model.config.num_labels
    return make_criterion(row.name, row.bounds(exits, classes)[0], patience, num_exits=exits, num_classes=classes)


def _within_loss(
    recorded: RecordedLogits, validated: Sequence[Tradeoff], name: str, patience: int | None, max_loss: float
) -> tuple[Chosen, dict[str, Chosen]]:
    """Choose the thresholds within a largest drop in score on the validation curves: the model's own, and all."""
    own = _on(recorded, within_loss(validated, name, patience, max_loss))
    defaults = {curve.criterion: curve for curve in reversed(validated)}  # the first of each, at its default patience
    chosen = {
        name: _on(recorded, within_loss([curve], name, curve.patience, max_loss)) for name, curve in defaults.items()
    }
    return own, {name: chosen[name] for name in with_threshold() if name in chosen} | {name: own}


def _on(recorded: RecordedLogits, validated: Chosen) -> Chosen:
    """Replace the layer speed-up of a threshold from validation samples by that on the recorded samples."""
    reached = layer_speed_up(recorded, validated.criterion, validated.threshold, validated.patience)
    return dataclasses.replace(validated, asked=reached, reached=reached)


def save_calibration(folder: Path, calibration: Calibration) -> str:
    """Write a calibration into a model's folder: config.json, exits.json and, if it has one, its card; all or none.

    Args:
        folder: The saved model.
        calibration: The calibration.

    Returns:
        The samples of the former thresholds, in words; empty if unknown.

    Raises:
        ConfigError: A file of the folder can't be read.
    """
    try:
        config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
        before = parse_json((folder / FILE).read_text(encoding="utf-8")) if (folder / FILE).exists() else {}
        card = (folder / "README.md").read_text(encoding="utf-8") if (folder / "README.md").exists() else None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: a file can't be read: {error}; restore the folder that training wrote") from None
    # The texts have no labels, so the drop in score at a threshold still comes from the validation samples.
    scored = {name: points for name, points in read_curves(folder, validated=True).items() if len(points[0]) == 3}
    config |= {
        "exit_strategy": calibration.own.criterion,
        "exit_threshold": calibration.own.threshold,
        "exit_patience": calibration.own.patience,
    }
    files = {
        folder / "config.json": json.dumps(config, indent=2) + "\n",
        folder / FILE: curves_as_json(
            calibration.curves, calibration.num_exits, calibration.chosen_on, calibration.own, scored
        ),
    }
    if card is not None:
        files[folder / "README.md"] = recalibrated(
            card,
            calibration.own,
            calibration.chosen,
            calibration.expected,
            calibration.chosen_on,
            calibration.single_class,
        )
    write_together(files)
    return str(before.get("chosen_on", "")) if isinstance(before, dict) else ""


def print_calibration(folder: Path, calibration: Calibration, before: str) -> None:
    """Print the thresholds with their layer speed-ups, and the changes to the folder.

    Args:
        folder: The model's folder.
        calibration: The new thresholds.
        before: The samples on which the former thresholds were chosen.
    """
    if calibration.single_class:
        sentence(
            f"warning: every exit predicts a single class on all {calibration.rows} texts, so its speed-up is meaningless; "
            f"{ADVICE}"
        )
    for name, one in ({} if calibration.single_class else calibration.chosen).items():
        low, high = calibration.expected[name]
        if one.max_loss is None:
            aim = f"target {one.asked:g}"
        else:
            aim = f"{-100 * (one.loss or 0.0) + 0.0:+.2f} points on validation samples"
        sentence(
            f"exit criterion {name}, threshold {one.threshold:.6g}: {one.reached:.2f}× layer speed-up on these "
            f"{calibration.rows} texts, 95 % CI on similar texts {low:.2f} to {high:.2f} ({aim})"
        )
        if not one.near:
            sentence(f"  {one.shortfall}")
    if times := calibration.times:
        sentence(
            f"{calibration.milliseconds:.3g} ms per text on average, {times.exits[-1]:.3g} ms for all layers "
            f"(at batch size 1 in {times.measured})"
        )
    if calibration.cut:
        sentence(f"{calibration.cut} texts were truncated to the model's maximum length")
    sentence(f"{folder}: now uses exit criterion {calibration.own.name}, threshold {calibration.own.threshold:.6g}")
    if before:
        sentence(f"this replaces the thresholds chosen on {before}")


def _recorded(
    model: Any,
    tokenizer: Any,
    texts: Sequence[tuple[str, ...]],
    source: str,
    runtime: Runtime,
    batch_size: int,
    progress: Any,
    time: Callable[[Any], ExitMilliseconds] | None = None,
) -> tuple[RecordedLogits, int, ExitMilliseconds | None]:
    """Record the logits of the texts; return also how many were truncated and, with `time`, the time up to each exit."""
    columns = tuple(list(column) for column in zip(*texts, strict=True))
    examples = Examples(columns, None, np.arange(len(texts)), source)
    with tempfile.TemporaryDirectory() as folder:
        rows = kind_of_model(model).encode(model, tokenizer, examples, Path(folder) / "rows.arrow")
        recorded = record_all(model, rows, runtime, batch_size, progress=progress)
        return recorded, int(rows.truncated), time(rows) if time else None
