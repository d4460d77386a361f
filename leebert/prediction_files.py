"""Write predictions as JSONL, CSV or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from leebert.errors import ConfigError, DataError
from leebert.files import replaced

#: Formats of an output file; stdout takes the first two.
FORMATS = ("jsonl", "csv", "parquet")

#: Rows of a row group of Parquet.
_ROW_GROUP = 1 << 16


def format_of(out: Path | None, form: str | None) -> str:
    """Choose the format of the output.

    Args:
        out: The output file; None: stdout.
        form: The value of `--format`; None: by the ending of the file, else jsonl.

    Raises:
        ConfigError: There is no such format, or stdout cannot take it.
    """
    chosen = (form or (out.suffix.lstrip(".") if out and out.suffix else "jsonl")).lower()
    if chosen not in FORMATS:
        raise ConfigError(f"--format {chosen}: should be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if chosen == "parquet" and out is None:
        raise ConfigError("--format parquet: is for files only; name one with --out, or use jsonl or csv")
    return chosen


def write_predictions(
    rows: Iterable[dict[str, Any]], out: TextIO, form: str, columns: Sequence[str], *, partial: bool = True
) -> int:
    """Write predictions as JSONL or CSV.

    Args:
        rows: The predictions.
        out: The output stream.
        form: jsonl or csv.
        columns: The columns of a prediction.
        partial: Whether the output keeps earlier predictions if a later row is bad, as stdout does.

    Returns:
        The number of predictions.

    Raises:
        DataError: A row is bad; the message also names the rows without a prediction.
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
        missing = f"no predictions from row {count} on" if count and partial else "no predictions were written"
        raise DataError(f"{error} ({missing})") from None
    return count


def save_predictions(rows: Iterable[dict[str, Any]], path: Path, form: str, columns: Sequence[str]) -> int:
    """Write predictions to a file; if that fails or is interrupted, an earlier file stays unchanged.

    Args:
        rows: The predictions.
        path: The file; its folder is created if missing.
        form: One of :data:`FORMATS`.
        columns: Keys of a prediction, in their order.

    Returns:
        Number of predictions.

    Raises:
        DataError: A row is bad; no predictions are written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path, sync=False) as unfinished:
        if form == "parquet":
            return _write_parquet(rows, unfinished, columns)
        with open(unfinished, "w", encoding="utf-8", newline="") as f:
            return write_predictions(rows, f, form, columns, partial=False)


def _write_parquet(rows: Iterable[dict[str, Any]], path: Path, columns: Sequence[str]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"row": pa.int64(), "probability": pa.float64(), "exit_layer": pa.int64()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in columns])
    count, predictions = 0, iter(rows)
    try:
        with pq.ParquetWriter(path, schema) as writer:
            for group in _groups(predictions):
                writer.write_table(pa.Table.from_pylist(group, schema))
                count += len(group)
    except DataError as error:
        raise DataError(f"{error} (no predictions were written)") from None
    return count


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while group := list(islice(rows, _ROW_GROUP)):
        yield group
