"""Calibrate an exported model on unlabelled texts: its threshold, and the speed of every point of its curves, on this machine."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leebert.calibration import Calibration, Recording, Subject, exit_counts
from leebert.errors import DataError
from leebert.evaluate import RecordedLogits
from leebert.exits import named
from leebert.exits.criterion import ExitCriterion
from leebert.export.network_times import exported_times
from leebert.export.samples import record_exported
from leebert.exported.manifest import MANIFEST, Curve, Exits, Manifest, Timing, verify_files
from leebert.exported.model import ExportedModel
from leebert.files import write_together
from leebert.milliseconds import ExitMilliseconds, mean_time
from leebert.operating_point import saved_tradeoffs
from leebert.tradeoff import Tradeoff

CARD = "README.md"

#: The heading of the section that a calibration adds to the card.
_HEADING = "## Calibration"


def exported_subject(
    model: ExportedModel, batch_size: int = 64, progress: Callable[[Iterable[Any]], Iterable[Any]] = iter
) -> Subject:
    """Describe an exported model of texts to :func:`leebert.calibration.calibrate`.

    Args:
        model: The model.
        batch_size: Samples per batch.
        progress: Wraps the iteration over batches, such as a progress bar.
    """
    manifest = model.manifest

    def record(texts: Sequence[tuple[str, ...]], time: Callable[[Any], ExitMilliseconds] | None) -> Recording:
        rows = model.encode(texts, truncate=True)
        full = np.flatnonzero(rows.lengths == manifest.max_length)
        cut = sum(_too_long(model, texts[row]) for row in full.tolist())
        return record_exported(model, rows, None, batch_size, progress), cut, time(rows) if time else None

    def time(rows: Any, criterion: ExitCriterion) -> ExitMilliseconds:
        return exported_times(model, rows, criterion, _threads(manifest))

    own = manifest.exits
    return Subject(
        manifest.exit_layers, manifest.depth, len(manifest.labels), own.criterion, own.patience, record, time
    )  # fmt: skip


def _too_long(model: ExportedModel, values: tuple[str, ...]) -> bool:
    try:
        model.encode([values])
    except DataError:
        return True
    return False


def _threads(manifest: Manifest) -> int:
    """Threads with which milliseconds are measured: those of the export."""
    return manifest.timing.threads if manifest.timing else 1


def load(folder: Path) -> ExportedModel:
    """Load an exported model with the threads of its milliseconds, after all its files were verified.

    Args:
        folder: The exported folder.

    Raises:
        CheckpointError: A file is missing, altered or damaged.
    """
    model = ExportedModel.load(folder)
    verify_files(folder, model.manifest)
    return model if _threads(model.manifest) == 1 else ExportedModel.load(folder, threads=_threads(model.manifest))


def validated_tradeoffs(manifest: Manifest) -> list[Tradeoff]:
    """The curves of an exported model, with the scores of its validation samples.

    Args:
        manifest: Its manifest.
    """
    curves = {one.name: [[p.threshold, p.speed_up, p.score] for p in one.points] for one in manifest.curves}
    return saved_tradeoffs(curves, manifest.exit_layers, manifest.depth)


def save_exported_calibration(folder: Path, manifest: Manifest, calibration: Calibration) -> None:
    """Write a calibration into an exported folder: `export.json` with its digests, and the card; both or none.

    The scores of the curves' points stay those of validation samples, since the texts have no labels; layers, layer speed-ups
    and milliseconds become those of the texts.

    Args:
        folder: The exported folder.
        manifest: Its manifest.
        calibration: The calibration, with times.
    """
    times, own = calibration.times, calibration.own
    assert times is not None
    segments = tuple(np.diff([0.0, *times.exits]).tolist())
    timing = Timing(
        threads=_threads(manifest), texts=calibration.rows, machine=times.measured, segments=segments
    )  # fmt: skip
    files = dict(manifest.files)
    texts: dict[Path, str] = {}
    if CARD in files:
        before = (folder / CARD).read_text(encoding="utf-8").partition(f"\n{_HEADING}")[0].rstrip()
        texts[folder / CARD] = f"{before}\n\n{_section(calibration)}"
        files[CARD] = hashlib.sha256(texts[folder / CARD].encode()).hexdigest()
    changed = dataclasses.replace(
        manifest,
        exits=Exits(criterion=own.criterion, threshold=own.threshold, patience=own.patience),
        curves=tuple(_on(curve, calibration.recorded, times) for curve in manifest.curves),
        timing=timing,
        files=files,
    )
    write_together({**texts, folder / MANIFEST: changed.as_json()})


def _on(curve: Curve, recorded: RecordedLogits, times: ExitMilliseconds) -> Curve:
    """Replace layers and milliseconds of a curve's points by those of recorded texts."""
    points = []
    for point in curve.points:
        exits = Exits(criterion=curve.criterion, threshold=point.threshold, patience=curve.patience)
        counts = exit_counts(recorded, exits)
        layers = float(counts @ np.asarray(recorded.layers)) / counts.sum()
        points.append(
            dataclasses.replace(
                point, mean_exit_layer=layers, speed_up=recorded.depth / layers,
                milliseconds=float(mean_time(counts, times.exits)),
            )
        )  # fmt: skip
    return dataclasses.replace(curve, points=tuple(points))


def _section(calibration: Calibration) -> str:
    """The section of the card."""
    own, times = calibration.own, calibration.times
    low, high = calibration.expected[own.criterion]
    assert times is not None
    return (
        f"{_HEADING}\n\nCalibrated on {calibration.chosen_on}: exit criterion {named(own.criterion, own.patience)}, "
        f"threshold {own.threshold:.6g}, layer speed-up {own.reached:.2f} (95 % CI on similar texts {low:.2f} to {high:.2f}), "
        f"{calibration.milliseconds:.3g} ms per text ({times.measured}). This replaces the threshold above, and the layers and "
        "milliseconds of the curves in export.json; scores are still those of the validation samples.\n"
    )
