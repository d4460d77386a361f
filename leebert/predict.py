"""Rows in, answers out: label, probability and exit layer for files and streams of any length."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from leebert.data.collate import TokenRows
from leebert.errors import DataError
from leebert.images.predict import ENDINGS

CHUNK = 256  # rows tokenised and answered at a time


def read_texts(lines: Iterable[str], columns: Sequence[str], name: str) -> Iterator[tuple[str, ...]]:
    """Texts from a stream: JSON objects with the named columns, or plain lines (two texts with a tab between them)."""
    for number, line in enumerate(_utf8(lines, name), start=1):
        line = line.rstrip("\r\n")
        if not line.strip():
            continue
        if line.lstrip().startswith("{"):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{name}, line {number}: not valid JSON ({error})") from None
            yield _pick(row, columns, f"{name}, line {number}")
        else:
            parts = line.split("\t")
            if len(parts) != len(columns):
                raise DataError(
                    f"{name}, line {number}: {len(parts)} text(s) where the model takes {len(columns)}; "
                    f"give {' and '.join(columns)} with a tab between, or JSON objects with these keys"
                )
            yield checked(tuple(parts), columns, f"{name}, line {number}")


def read_file(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Texts from a CSV, TSV, JSONL, Parquet or plain text file."""
    suffix = path.suffix.lower()
    if path.is_dir() or suffix in ENDINGS:
        raise DataError(
            f"{path}: the model takes texts: a file of them (.csv, .tsv, .jsonl, .parquet, or a text in each line)"
        )
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if suffix == ".parquet":
        yield from _read_parquet(path, columns)
        return
    with open(path, encoding="utf-8-sig", newline="") as f:
        if suffix in (".csv", ".tsv"):
            yield from _read_table(f, suffix, path, columns)
        else:
            yield from read_texts(f, columns, str(path))


def _read_parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield _pick(row, columns, f"{path}, row {number}")
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from None


def _read_table(f: TextIO, suffix: str, path: Path, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    # GLUE's TSV knows no quotes; CSV does.
    lines = _utf8(f, str(path))
    tabs = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    rows = csv.reader(lines, strict=True) if suffix == ".csv" else tabs
    header: list[str] = []
    try:
        for row in rows:
            if not row:  # a blank line is no row
                continue
            if not header:
                header = row
                twice = sorted({name for name in header if header.count(name) > 1})
                if twice:
                    raise DataError(f"{path}, header: column {twice[0]!r} stands there twice; rename one of the two")
                continue
            where = f"{path}, line {rows.line_num}"
            if len(row) != len(header):
                raise DataError(f"{where}: expected {len(header)} columns, got {len(row)}; correct or remove the line")
            yield _pick(dict(zip(header, row, strict=True)), columns, where)
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: not valid: {error}; check the quotes there") from None


def _utf8(lines: Iterable[str], name: str) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 text ({error}); convert it") from None


def _pick(row: Any, columns: Sequence[str], where: str) -> tuple[str, ...]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON object is expected")
    missing = [c for c in columns if row.get(c) is None]
    if missing:
        there = ", ".join(str(k) for k in row if k is not None) or "none"
        raise DataError(f"{where}: no column {missing[0]!r}; there are: {there} (name yours with --text)")
    for column in columns:
        if isinstance(row[column], (dict, bytes, list)):
            raise DataError(f"{where}: {column!r} holds no text; the model takes texts (name their column with --text)")
    return checked(tuple(str(row[c]) for c in columns), columns, where)


def checked(texts: tuple[str, ...], columns: Sequence[str], where: str) -> tuple[str, ...]:
    """Texts as they are, if none is empty or undecodable; `where` is named in the DataError."""
    for text, column in zip(texts, columns, strict=True):
        if not text.strip():
            raise DataError(f"{where}: empty text in {column!r}")
        if any("\ud800" <= c <= "\udfff" for c in text):  # what no tokenizer takes
            raise DataError(f"{where}: the text in {column!r} is no valid Unicode; clean it")
    return texts


def answers(
    model: Any, tokenizer: Any, texts: Iterable[tuple[str, ...]], strategy: Any, runtime: Any, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Label, probability and exit layer of each row, in order; texts that are too long are cut."""
    texts, first = iter(texts), 0
    while chunk := list(islice(texts, CHUNK)):
        encoded = encode(tokenizer, chunk, model.config.max_length)
        yield from answer_encoded(model, tokenizer, encoded, strategy, runtime, batch_size, first)
        first += len(chunk)


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
    strategy: Any,
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
        answer = infer(model, rows.collate(index), strategy, runtime)
        probability, label = torch.softmax(answer.logits.float(), -1).max(-1)
        for i, p, k, layer in zip(index, probability.tolist(), label.tolist(), answer.layers.tolist(), strict=True):
            found[i] = {"label": model.config.id2label[k], "probability": round(p, 6), "exit_layer": layer}
    return found


#: What an answer has, in this order.
COLUMNS = ("label", "probability", "exit_layer")


def write_answers(rows: Iterable[dict[str, Any]], out: TextIO, form: str, columns: Sequence[str] = COLUMNS) -> int:
    """Write answers as JSONL or CSV; returns how many."""
    count = 0
    writer = csv.DictWriter(out, columns, lineterminator="\n") if form == "csv" else None
    if writer:
        writer.writeheader()
    for row in rows:
        if writer:
            writer.writerow(row)
        else:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
        count += 1
    return count
