"""Evaluate an exported model of texts on a split: the scores and curves of its own logits, in layers and milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from leebert.data.sources import Examples
from leebert.evaluate import RecordedLogits
from leebert.export.network_times import in_words
from leebert.export.timing import segment_times, timed
from leebert.exported.model import ExportedModel
from leebert.latency import TIMED
from leebert.milliseconds import ExitMilliseconds
from leebert.report import add_milliseconds, evaluation
from leebert.tradeoff import replay_point


def evaluate_exported(
    model: ExportedModel,
    examples: Examples,
    metric: str,
    *,
    threads: int = 1,
    batch_size: int = 64,
    timed_rows: int = 50,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[str, Any]:
    """Evaluate an exported model on a split, and measure the time up to each exit.

    Args:
        model: The exported model.
        examples: N labelled samples.
        metric: Name of the task's metric.
        threads: Threads of ONNX Runtime, for words.
        batch_size: Samples per batch.
        timed_rows: Most samples to time at batch size 1; 0: none.
        progress: Wraps the iteration over batches.

    Returns:
        The values of :func:`leebert.report.evaluation`, with `own` and `milliseconds` as of
        :func:`leebert.report.evaluate_split`.

    Raises:
        DataError: A row cannot be tokenised.
    """
    rows = model.encode(list(zip(*examples.texts, strict=True)), truncate=True)
    order = rows.lengths.argsort(kind="stable")
    manifest = model.manifest
    logits = np.empty((manifest.num_exits, len(rows), len(manifest.labels)), np.float32)
    for start in progress(range(0, len(order), batch_size)):
        index = order[start : start + batch_size]
        logits[:, index] = model.all_logits(rows.padded(index))
    recorded = RecordedLogits(logits, examples.labels, manifest.exit_layers, manifest.depth)
    result = evaluation(recorded, metric)
    own = manifest.exits
    result["own"] = replay_point(recorded, metric, own.criterion, own.threshold, own.patience).as_dict()
    if timed_rows:
        index = timed(rows.lengths, min(timed_rows, TIMED))
        batches = [rows.padded([i]) for i in index]
        times = segment_times({"": (model, model.criterion(own))}, batches)[""].segments.cumsum()
        described = in_words(manifest.precision, threads, rows.lengths[index])
        add_milliseconds(result, ExitMilliseconds(tuple(times.tolist()), manifest.exit_layers, described))
    return result
