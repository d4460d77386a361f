"""Predict label, probability and exit layer for files and streams of texts of any length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from leebert.data.collate import TokenRows
from leebert.data.readers import Row
from leebert.data.tasks import get_task
from leebert.data.texts import characters, texts_of
from leebert.files import parse_json
from leebert.majority import AgainstMajority, margin_in_words
from leebert.windows import Windows

#: Rows of a request that the service tokenises at a time.
CHUNK = 256

#: The columns of a prediction.
COLUMNS = ("row", "label", "probability", "exit_layer")


def predictions(
    model: Any, tokenizer: Any, rows: Iterable[Row], criterion: Any, runtime: Any, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Predict rows of texts one after the other; texts that are too long are truncated.

    Args:
        model: A saved model in evaluation mode.
        tokenizer: Its tokenizer.
        rows: The texts.
        criterion: The exit criterion at its threshold.
        runtime: Device and precision.
        batch_size: Samples per forward pass.

    Yields:
        For each row in order: its number, label, probability and exit layer (from 1).
    """
    first = 0
    for window in Windows(rows, characters):
        yield from predict_texts(model, tokenizer, window, criterion, runtime, batch_size, first)
        first += len(window)


def predict_texts(
    model: Any, tokenizer: Any, rows: Sequence[Row], criterion: Any, runtime: Any, batch_size: int, first: int = 0
) -> list[dict[str, Any]]:
    """Predict one window of rows; texts that are too long are truncated.

    Args:
        model: A saved model in evaluation mode.
        tokenizer: Its tokenizer.
        rows: The texts.
        criterion: The exit criterion at its threshold.
        runtime: Device and precision.
        batch_size: Samples per forward pass.
        first: Number of the first row, for messages.

    Returns:
        For each row in order, the values of :data:`COLUMNS`.

    Raises:
        DataError: A token has no embedding in the model.
    """
    encoded = encode(tokenizer, [row.values for row in rows], model.config.max_length)
    predicted = predict_encoded(model, tokenizer, encoded, criterion, runtime, batch_size, first)
    return [{"row": row.number, **one} for row, one in zip(rows, predicted, strict=True)]


def texts_for(task: Any, source: Path | Iterable[bytes | str], columns: Sequence[str] = ()) -> Iterator[Row]:
    """Read the texts for a task's model from a file or a stream.

    Args:
        task: The model's task, a name or a declaration; None: one text per row.
        source: The file, or the lines of stdin.
        columns: Names of the text columns; (): those of the task.

    Raises:
        ConfigError: The number of columns differs from the task's.
        DataError: A value is not a text; the message names its place.
    """
    return texts_of(get_task(task).text_names if task else (), source, columns)


def encode(tokenizer: Any, texts: Sequence[tuple[str, ...]], max_length: int | None) -> Any:
    """Tokenise rows without padding.

    Args:
        tokenizer: A fast tokenizer.
        texts: One tuple of one or two texts per row.
        max_length: Tokens to which a row is truncated; None: no limit.

    Returns:
        The tokenizer's output, with a list per row.
    """
    truncation = (
        {"truncation": False, "verbose": False}
        if max_length is None
        else {"truncation": True, "max_length": max_length}
    )
    return tokenizer(*(list(column) for column in zip(*texts, strict=True)), **truncation)


def predict_encoded(
    model: Any,
    tokenizer: Any,
    encoded: Mapping[str, Any],
    criterion: Any,
    runtime: Any,
    batch_size: int,
    first: int = 0,
) -> list[dict[str, Any]]:
    """Predict rows of :func:`encode` by inference that stops at the exit layer.

    Args:
        model: A saved model in evaluation mode.
        tokenizer: Its tokenizer.
        encoded: N tokenised rows.
        criterion: The exit criterion at its threshold.
        runtime: Device and precision.
        batch_size: Samples per forward pass.
        first: Number of the first row, for messages.

    Returns:
        N predictions in order, each with `label`, `probability` and `exit_layer` (from 1).

    Raises:
        DataError: A token has no embedding in the model.
    """
    import torch

    from leebert.compatibility import limits_of_encoder
    from leebert.inference import infer

    samples = TokenRows.of(encoded, tokenizer.pad_token_id)
    limits_of_encoder(model.backbone).check_rows(samples, "texts", range(first, first + len(samples)))
    order = samples.lengths.argsort(kind="stable")
    results: list[dict[str, Any]] = [{}] * len(samples)
    for start in range(0, len(order), batch_size):
        index = order[start : start + batch_size]
        outcome = infer(model, samples.collate(index), criterion, runtime)
        probability, label = torch.softmax(outcome.logits.float(), -1).max(-1)
        for i, p, k, layer in zip(index, probability.tolist(), label.tolist(), outcome.layers.tolist(), strict=True):
            results[i] = {"label": model.config.id2label[k], "probability": round(p, 6), "exit_layer": layer}
    return results


def majority_warning(folder: Path) -> str | None:
    """Warn about a saved model that is not significantly above the majority class.

    Args:
        folder: The model's folder. `evaluation.json` (development splits) counts if it exists, else `training.json`
            (validation fold).

    Returns:
        One sentence; None if the model is better than the majority class, or the folder has no such comparison.
    """
    for file in ("evaluation.json", "training.json"):
        try:
            values = parse_json((folder / file).read_text(encoding="utf-8"))
            results = values["splits"] if file == "evaluation.json" else {"the validation fold": values}
            compared = {split: AgainstMajority.of(one["majority"]) for split, one in results.items() if one["majority"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        for split, against in compared.items():
            if against.verdict != "learned":
                margin = margin_in_words(against.margin, against.interval)
                return (
                    f"the model in {folder} is not significantly above the majority class on {split} (mean over exits "
                    f"{margin}); train it further before you use its predictions"
                )
        if compared:
            return None
    return None
