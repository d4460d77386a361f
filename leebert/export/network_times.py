"""Time a network in its exported form without writing an export: the weights may be arbitrary."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from leebert.exits import FULL_MODEL
from leebert.exits.criterion import ExitCriterion
from leebert.export.command import PRECISIONS, made_with
from leebert.export.pieces import trace
from leebert.export.quantise import quantised
from leebert.export.ranges import measure_ranges
from leebert.export.samples import inputs
from leebert.export.segments import compose
from leebert.export.timing import segment_times, timed
from leebert.export.write import segments_of, write_export
from leebert.exported.cpu import lacks_eight_bit
from leebert.exported.manifest import Exits, Manifest
from leebert.exported.model import ExportedModel
from leebert.exported.sessions import load_sessions
from leebert.latency import TIMED
from leebert.milliseconds import ExitMilliseconds, samples_in_words
from leebert.numerics import processor
from leebert.record import SampleSet


def network_times(
    model: Any,
    rows: SampleSet,
    criterion: ExitCriterion,
    runtime: Any = None,
    most: int = TIMED,
    *,
    int8: str | None = None,
) -> ExitMilliseconds:
    """Measure the time of one sample up to each exit's decision, in ONNX Runtime on one thread of this machine.

    Args:
        model: A model in evaluation mode, on the CPU.
        rows: The samples, of which some that are spread over the lengths are timed.
        criterion: The exit criterion whose decisions are timed.
        runtime: Not used; :func:`leebert.latency.exit_milliseconds` has it.
        most: Number of samples to time.
        int8: `dynamic` or `static`: quantised; None: float32.

    Returns:
        The times, with what they were measured with.

    Raises:
        ConfigError: The network cannot be expressed in ONNX.
    """
    pieces = trace(model)
    graphs = compose(pieces, pieces.exit_layers)
    if int8 is not None:
        few = [inputs(rows, [i]) for i in timed(np.asarray(rows.lengths), most)]
        ranges = measure_ranges(graphs, few) if int8 == "static" else None
        graphs = [quantised(graph, ranges, reduced=lacks_eight_bit()) for graph in graphs]
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
        precision=PRECISIONS[int8],  # type: ignore[arg-type]  # a literal
    )
    with tempfile.TemporaryDirectory() as folder:
        written = write_export(Path(folder), graphs, None, manifest)
        exported = ExportedModel(Path(folder), written, load_sessions(Path(folder), written, 1), None)
        return exported_times(exported, rows, criterion, 1, most)


def exported_times(
    model: ExportedModel, rows: SampleSet, criterion: ExitCriterion, threads: int, most: int = TIMED
) -> ExitMilliseconds:
    """Measure the time of one sample up to each exit's decision of an exported model.

    Args:
        model: The exported model.
        rows: The samples, of which some that are spread over the lengths are timed.
        criterion: The exit criterion whose decisions are timed.
        threads: Threads of ONNX Runtime with which the model was loaded, for words.
        most: Number of samples to time.

    Returns:
        The times, with what they were measured with.
    """
    lengths = np.asarray(rows.lengths)
    index = timed(lengths, most)
    times = segment_times({"": (model, criterion)}, [inputs(rows, [i]) for i in index])[""].segments.cumsum()
    manifest = model.manifest
    measured = (
        f"ONNX Runtime {manifest.precision}, {processor()}, {threads} thread(s), {samples_in_words(lengths[index])}"
    )
    return ExitMilliseconds(tuple(times.tolist()), manifest.exit_layers, measured)
