"""Evaluate an exported model of texts on a split: the scores and curves of its own logits, in layers and milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from leebert.data.sources import Examples
from leebert.export.network_times import exported_times
from leebert.export.samples import record_exported
from leebert.exported.model import ExportedModel
from leebert.latency import TIMED
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
    recorded = record_exported(model, rows, examples.labels, batch_size, progress)
    result = evaluation(recorded, metric)
    own = model.manifest.exits
    result["own"] = replay_point(recorded, metric, own.criterion, own.threshold, own.patience).as_dict()
    if timed_rows:
        times = exported_times(model, rows, model.criterion(own), threads, min(timed_rows, TIMED))
        add_milliseconds(result, times)
    return result
