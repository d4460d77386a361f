"""Rows in, answers out: label, probability and exit layer for files and streams of any length."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from leebert.data.collate import TokenRows
from leebert.data.readers import Columns, Row
from leebert.data.tasks import get_task
from leebert.data.texts import read_texts
from leebert.errors import ConfigError, DataError
from leebert.files import replaced

CHUNK = 256  # rows tokenised and answered at a time


def answers(
    model: Any, tokenizer: Any, rows: Iterable[Row], criterion: Any, runtime: Any, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Number, label, probability and exit layer of each row of texts, in order; texts that are too long are cut."""
    rows, first = iter(rows), 0
    while chunk := list(islice(rows, CHUNK)):
        encoded = encode(tokenizer, [row.values for row in chunk], model.config.max_length)
        found = answer_encoded(model, tokenizer, encoded, criterion, runtime, batch_size, first)
        yield from ({"row": row.number, **answer} for row, answer in zip(chunk, found, strict=True))
        first += len(chunk)


def texts_for(task: Any, source: Path | Iterable[bytes | str], columns: Sequence[str] = ()) -> Iterator[Row]:
    """The texts of a file, or of a stream's lines, that the model of a task is to answer.

    Args:
        task: The model's task, a name or a declaration; None: a model that names none, which takes one text.
        source: The file, or the lines of stdin.
        columns: The names of the columns of text; () stands for those of the task.

    Raises:
        ConfigError: More or fewer columns than the model takes texts.
        DataError: Whatever is no text, with its place.
    """
    own = get_task(task).text_names if task else ()
    if own and columns and len(columns) != len(own):
        raise ConfigError(
            f"--text {', '.join(columns)}: this model takes {len(own)} column(s) of text, as "
            f"{', '.join(names[0] for names in own)}"
        )
    names = tuple((name,) for name in columns) if columns else own or (("text",),)
    wanted = Columns(names, "name yours with --text")
    return read_texts(source, wanted) if isinstance(source, Path) else read_texts(source, wanted, "stdin")


def encode(tokenizer: Any, texts: Sequence[tuple[str, ...]], max_length: int | None) -> Any:
    """Tokenised rows, not padded; cut at `max_length` unless that is None."""
    cut = (
        {"truncation": False, "verbose": False}
        if max_length is None
        else {"truncation": True, "max_length": max_length}
    )
    return tokenizer(*(list(column) for column in zip(*texts, strict=True)), **cut)


def answer_encoded(
    model: Any,
    tokenizer: Any,
    encoded: Mapping[str, Any],
    criterion: Any,
    runtime: Any,
    batch_size: int,
    first: int = 0,
) -> list[dict[str, Any]]:
    """The answers to rows of :func:`encode`, in order, by inference that stops at the exit.

    `first` is the number of the first row in messages. Raises DataError for a token without an embedding in the model.
    """
    import torch

    from leebert.compatibility import limits_of_encoder
    from leebert.inference import infer

    rows = TokenRows.of(encoded, tokenizer.pad_token_id)
    limits_of_encoder(model.backbone).check_rows(rows, "texts", range(first, first + len(rows)))
    order = rows.lengths.argsort(kind="stable")
    found: list[dict[str, Any]] = [{}] * len(rows)
    for start in range(0, len(order), batch_size):
        index = order[start : start + batch_size]
        answer = infer(model, rows.collate(index), criterion, runtime)
        probability, label = torch.softmax(answer.logits.float(), -1).max(-1)
        for i, p, k, layer in zip(index, probability.tolist(), label.tolist(), answer.layers.tolist(), strict=True):
            found[i] = {"label": model.config.id2label[k], "probability": round(p, 6), "exit_layer": layer}
    return found


#: What an answer has, in this order.
COLUMNS = ("row", "label", "probability", "exit_layer")


def write_answers(
    rows: Iterable[dict[str, Any]], out: TextIO, form: str, columns: Sequence[str] = COLUMNS, *, kept: bool = True
) -> int:
    """Write answers as JSONL or CSV.

    Args:
        rows: The answers.
        out: Where they go.
        form: jsonl or csv.
        columns: What an answer has.
        kept: Whether what is written stays where a later row can't be read.

    Returns:
        How many were written.

    Raises:
        DataError: A row can't be read; the message also says which rows have no answer because of it.
    """
    count = 0
    writer = csv.DictWriter(out, columns, lineterminator="\n") if form == "csv" else None
    if writer:
        writer.writeheader()
    try:
        for row in rows:
            if writer:
                writer.writerow(row)
            else:
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    except DataError as error:
        unanswered = f"row {count} and those after it are not answered" if count and kept else "no row is answered"
        raise DataError(f"{error} ({unanswered})") from None
    return count


def save_answers(rows: Iterable[dict[str, Any]], path: Path, form: str, columns: Sequence[str] = COLUMNS) -> int:
    """Write answers into a file, whole or not at all, as :func:`write_answers`; an error leaves an earlier file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path, sync=False) as unfinished, open(unfinished, "w", encoding="utf-8", newline="") as f:
        return write_answers(rows, f, form, columns, kept=False)
