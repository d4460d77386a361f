"""Time a network in its exported form without writing an export: the weights may be arbitrary."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from leebert.exits import FULL_MODEL
from leebert.exits.criterion import ExitCriterion
from leebert.export.command import made_with
from leebert.export.pieces import trace
from leebert.export.samples import inputs
from leebert.export.segments import compose
from leebert.export.timing import segment_times, timed
from leebert.export.write import segments_of, write_export
from leebert.exported.manifest import Exits, Manifest
from leebert.exported.model import ExportedModel
from leebert.exported.sessions import load_sessions
from leebert.latency import TIMED, processor
from leebert.milliseconds import ExitMilliseconds
from leebert.record import SampleSet


def network_times(
    model: Any, rows: SampleSet, criterion: ExitCriterion, runtime: Any = None, most: int = TIMED
) -> ExitMilliseconds:
    """Measure the time of one sample up to each exit's decision, in ONNX Runtime fp32 on one thread of this machine.

    Args:
        model: A model in evaluation mode, on the CPU.
        rows: The samples, of which some that are spread over the lengths are timed.
        criterion: The exit criterion whose decisions are timed.
        runtime: Not used; :func:`leebert.latency.exit_milliseconds` has it.
        most: Number of samples to time.

    Returns:
        The times, with what they were measured with.

    Raises:
        ConfigError: The network cannot be expressed in ONNX.
    """
    pieces = trace(model)
    graphs = compose(pieces, pieces.exit_layers)
    manifest = Manifest(
        kind="images",  # without a tokenizer: the samples are tokens already
        name="network",
        task="timing",
        labels=tuple(str(i) for i in range(model.config.num_labels)),
        depth=model.depth,
        metric="accuracy",
        segments=segments_of(graphs),
        exits=Exits(criterion=FULL_MODEL),
        made_with=made_with(),
        text_columns=(),
        max_length=0,
        padding_id=0,
        precision="fp32",
    )
    index = timed(np.asarray(rows.lengths), most)
    with tempfile.TemporaryDirectory() as folder:
        written = write_export(Path(folder), graphs, None, manifest)
        exported = ExportedModel(Path(folder), written, load_sessions(Path(folder), written, 1), None)
        batches = [inputs(rows, [i]) for i in index]
        times = segment_times({"": (exported, criterion)}, batches)[""].segments.cumsum()
    return ExitMilliseconds(
        tuple(times.tolist()), tuple(pieces.exit_layers), in_words("fp32", 1, np.asarray(rows.lengths)[index])
    )


def in_words(precision: str, threads: int, lengths: np.ndarray) -> str:
    """Describe what times of an exported model were measured with.

    Args:
        precision: Of the exported model.
        threads: Threads of ONNX Runtime.
        lengths: (N,) tokens of the timed samples; 1 for images.
    """
    mean = float(np.mean(lengths))
    length = "" if mean == 1 else f" of {mean:.0f} tokens on average"
    return f"ONNX Runtime {precision}, {processor()}, {threads} thread(s), {len(lengths)} samples{length}"
