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
from leebert.exits.checks import ExitParameters, choosable
from leebert.exits.criterion import Criterion, ExitCriterion
from leebert.exits.replay import make_criterion, replay
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

#: Logits of texts, the number of truncated texts, and the time up to each exit if it was measured.
Recording = tuple[RecordedLogits, int, ExitMilliseconds | None]


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
        recorded: The logits of the texts.
        curves: Layer speed-up by threshold, as in :func:`leebert.thresholds.curves`.
        single_class: Whether every exit predicts one class for all texts; the speed-up is then meaningless.
        times: The wall-clock time up to each exit, if it was measured; else None.
        milliseconds: The mean time per text at the model's new threshold, if it was measured.
    """

    own: Chosen
    chosen: dict[str, Chosen]
    expected: dict[str, tuple[float, float]]
    rows: int
    cut: int
    source: str
    recorded: RecordedLogits
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


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model, saved or exported, as calibration uses it.

    Attributes:
        exit_layers: (M,) layers below each exit.
        depth: Layers of the unreduced network.
        classes: K.
        criterion: Name of its exit criterion.
        patience: The criterion's second parameter; None: the default, or it has none.
        record: Runs texts through all layers: logits, the number of truncated texts, and the times that its second argument
            measured on the tokenised texts, if it is given.
        time: Measures the time up to each exit of tokenised texts under a criterion.
    """

    exit_layers: tuple[int, ...]
    depth: int
    classes: int
    criterion: str
    patience: int | None
    record: Callable[[Sequence[tuple[str, ...]], Callable[[Any], ExitMilliseconds] | None], Recording]
    time: Callable[[Any, ExitCriterion], ExitMilliseconds]

    @property
    def num_exits(self) -> int:
        """M."""
        return len(self.exit_layers)


def saved_subject(
    model: Any,
    tokenizer: Any,
    source: str,
    runtime: Runtime,
    *,
    batch_size: int = 64,
    time_exits: Callable[..., ExitMilliseconds] = exit_milliseconds,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Subject:
    """Describe a saved model to :func:`calibrate`.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        source: Name of the texts, for messages.
        runtime: Device and precision.
        batch_size: Samples per forward pass.
        time_exits: Measures the time up to each exit.
        progress: Wraps the iteration over batches, such as a progress bar.
    """

    def record(texts: Sequence[tuple[str, ...]], time: Callable[[Any], ExitMilliseconds] | None) -> Recording:
        columns = tuple(list(column) for column in zip(*texts, strict=True))
        examples = Examples(columns, None, np.arange(len(texts)), source)
        with tempfile.TemporaryDirectory() as folder:
            rows = kind_of_model(model).encode(model, tokenizer, examples, Path(folder) / "rows.arrow")
            recorded = record_all(model, rows, runtime, batch_size, progress=progress)
            return recorded, int(rows.truncated), time(rows) if time else None

    config = model.config
    return Subject(
        tuple(model.exit_layers), model.depth, config.num_labels, config.exit_strategy, config.exit_patience, record,
        lambda rows, criterion: time_exits(model, rows, criterion, runtime),
    )  # fmt: skip


def calibrate(
    subject: Subject,
    texts: Sequence[tuple[str, ...]],
    source: str,
    aim: Aim,
    criterion: str,
    *,
    validated: Sequence[Tradeoff] = (),
    always_timed: bool = False,
) -> Calibration:
    """Run the texts once through all layers and choose the threshold of every criterion for an aim.

    For a target speed-up, the threshold comes from the texts, and for a largest time per text, too: the time up to each exit is
    measured on this machine, and the largest mean exit layer within it gives the layer speed-up. For a largest drop in score, it comes from the model's validation
    curves, since the texts have no labels; the texts then give its layer speed-up.

    Args:
        subject: The model.
        texts: N texts or pairs of texts.
        source: Their name, for messages.
        aim: The target layer speed-up, the largest drop in score, or the largest mean time per text.
        criterion: The exit criterion that becomes the model's own.
        validated: The model's validation curves (:func:`leebert.operating_point.saved_tradeoffs`).
        always_timed: Whether to measure the time up to each exit for any aim.

    Returns:
        The thresholds and curves; :func:`save_calibration` writes them into a saved model.

    Raises:
        ConfigError: The model has no such criterion, or can't reach the aim.
        DataError: There are too few different texts, or no threshold attains the speed-up.
    """
    if subject.num_exits == 1:
        raise ConfigError("this model has one exit, so it has no threshold to calibrate; train it with several exits")
    own_row = choosable(criterion)
    patience = own_row.counted(subject.patience if own_row.name == subject.criterion else None, subject.num_exits)
    timed = _timed(own_row, patience, subject) if always_timed or aim.milliseconds is not None else None
    speed_up = attainable(subject.exit_layers, subject.depth)[0]  # any text will do until the times are known
    if aim.max_loss is not None:
        speed_up = within_loss(validated, own_row.name, patience, aim.max_loss).reached
    elif aim.speed_up is not None:
        speed_up = check_speed_up(aim.speed_up, subject.exit_layers, subject.depth)
    _check_count(texts, source, subject, speed_up)
    recorded, cut, times = subject.record(texts, (lambda rows: subject.time(rows, timed)) if timed else None)
    if aim.milliseconds is not None:
        assert times is not None
        speed_up = times.speed_up_within(tradeoff(recorded, own_row.name, patience), aim.milliseconds)
        _check_count(texts, source, subject, speed_up)
    if aim.max_loss is not None:
        own, chosen = _within_loss(recorded, validated, own_row.name, patience, aim.max_loss)
    else:
        own = choose(recorded, own_row.name, speed_up, patience)
        chosen = {name: choose(recorded, name, speed_up) for name in with_threshold()} | {own_row.name: own}
        if not own.near and not own_row.whole:
            raise DataError(f"{source}: {own.shortfall}; set --speed-up to that, or give other texts")
    expected = {name: speed_up_interval(recorded, name, one.threshold, one.patience) for name, one in chosen.items()}
    mean = None if times is None else float(times.mean(exit_counts(recorded, own)))
    return Calibration(
        own, chosen, expected, len(texts), cut, source, recorded, curves(recorded, own.patience),
        bool(collapsed(recorded.logits).all()), times, mean,
    )  # fmt: skip


def exit_counts(recorded: RecordedLogits, exits: ExitParameters) -> np.ndarray:
    """Count the samples that exit at each exit.

    Args:
        recorded: Logits (M, N, K).
        exits: The exit criterion with its parameters.

    Returns:
        (M,) numbers of samples.
    """
    m, _, k = recorded.logits.shape
    criterion = make_criterion(exits.criterion, exits.threshold, exits.patience, num_exits=m, num_classes=k)
    return np.bincount(replay(criterion, recorded.logits), minlength=m)


def _check_count(texts: Sequence[tuple[str, ...]], source: str, model: Subject, speed_up: float) -> None:
    """Raise DataError if there are too few different texts for a layer speed-up."""
    needed = rows_needed(speed_up, model.exit_layers, model.depth)
    differing = len(set(texts))  # a repeated text adds no information
    if differing < needed:
        count = f"{differing} different texts" if texts else "no texts"
        raise DataError(
            f"{source}: {count}; a layer speed-up of {speed_up:g} with {model.depth} layers needs at least {needed} different "
            f"texts, so that similar texts reach it within {MISSED:.0%}; add texts"
        )


def _timed(row: Criterion, patience: int | None, subject: Subject) -> ExitCriterion:
    """Make a criterion to time; any threshold will do, since timing lets no sample exit."""
    exits, classes = subject.num_exits, subject.classes
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
            calibration.curves, len(calibration.recorded.logits), calibration.chosen_on, calibration.own, scored
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
