"""The card README.md of an exported model: scores, times and origin, for people."""

from __future__ import annotations

from collections.abc import Sequence

from leebert.exits import named
from leebert.export.result import Exported
from leebert.exported.manifest import Manifest

#: Layer speed-up between neighbouring points of the curve that the card shows.
_STEP = 0.25


def card(exported: Exported) -> str:
    """Write the text of README.md.

    Args:
        exported: What is written.
    """
    manifest = exported.manifest
    own = manifest.exits
    threshold = "" if own.threshold is None else f", threshold {own.threshold:.6g}"
    timing = manifest.timing
    lines = [
        f"# {manifest.name}",
        "",
        f"An early-exit model of {manifest.kind} for the task {manifest.task}, exported by `leebert export` for ONNX Runtime: "
        f"{len(manifest.segments)} segment(s), {manifest.precision}, {exported.size / 1e6:.1f} MB. "
        "It runs without torch: `pip install 'leebert-sweep[serve]'`.",
        "",
        "```python",
        "from leebert.exported.model import ExportedModel",
        f'model = ExportedModel.load("{manifest.name}")',
        "```",
        "",
        f"Exit criterion: {named(own.criterion, own.patience)}{threshold}.",
        "",
        f"## Scores by exit ({manifest.metric}, {exported.source})",
        "",
        *markdown(("layer", "PyTorch", "exported", "ms up to here"), score_rows(manifest)),
        "",
        *(["Thresholds were chosen on these samples of a development split, so that scores are optimistic.", ""]
          if exported.tuned else []),
    ]  # fmt: skip
    if points := curve_rows(manifest):
        lines += [
            f"## Score against speed ({named(own.criterion, own.patience)})",
            "",
            *markdown(("threshold", "layer speed-up", "mean exit layer", "ms", "score"), points),
            "",
            f"Thresholds and this table: {exported.calibrated_on}.",
            "",
        ]
    if timing:
        lines += [
            f"Milliseconds: one sample at a time, {timing.texts} samples whose lengths are spread like those of all, medians; "
            f"{timing.machine}, {timing.threads} thread(s) of ONNX Runtime.",
            "",
        ]
    made = manifest.made_with
    lines += [
        f"Made with leebert {made.leebert}, onnxruntime {made.onnxruntime}, onnx {made.onnx}, torch {made.torch}"
        + (f", on a CPU with {', '.join(made.cpu)}" if made.cpu else "") + ".",
        *([f"Ranges of int8 were measured on {exported.texts_source}."] if exported.texts_source else []),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def score_rows(manifest: Manifest) -> list[tuple[str, ...]]:
    """Make the rows of the table of exits: layer, both scores in per cent, and the time up to the exit.

    Args:
        manifest: The manifest.
    """
    rows: list[tuple[str, ...]] = []
    up_to = 0.0
    for index, score in enumerate(manifest.scores):
        up_to += manifest.timing.segments[index] if manifest.timing else 0.0
        rows.append((str(score.layer), f"{100 * score.model:.2f}", f"{100 * score.exported:.2f}", f"{up_to:.2f}"))
    return rows


def curve_rows(manifest: Manifest) -> list[tuple[str, ...]]:
    """Make the rows of the model's own curve, in steps of layer speed-up.

    Args:
        manifest: The manifest.
    """
    own = manifest.exits
    curve = manifest.curve(own.criterion, own.patience)
    rows: list[tuple[str, ...]] = []
    last = 0.0
    for point in curve.points if curve else ():
        if point.speed_up >= last + _STEP or point.threshold == own.threshold:
            last = max(last, point.speed_up)
            time = "" if point.milliseconds is None else f"{point.milliseconds:.2f}"
            rows.append(
                (f"{point.threshold:.6g}", f"{point.speed_up:.2f}", f"{point.mean_exit_layer:.2f}", time,
                 f"{100 * point.score:.2f}")
            )  # fmt: skip
    return rows


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Make the lines of a Markdown table.

    Args:
        columns: Its heading.
        rows: Its rows.
    """
    lines = [columns, ["---:"] * len(columns), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
