"""Read rows from CSV, TSV, JSON lines, JSON arrays, Parquet and lines of text.

Training, evaluation, prediction, calibration and GLUE submissions all use this module, so they accept the same files.
Files are streamed; only a JSON array is loaded as a whole.

Conventions: UTF-8, with or without a byte order mark; no null character. Rows are numbered from 0, without the header.
CSV has double quotes and fields of any length; TSV has no quoting, as in GLUE's files. CSV and JSON skip blank lines; TSV
and text, where each line is a row, skip them at the end of the file only. Duplicate columns or keys are errors, unless
they have no name.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from leebert.errors import DataError, nearest

#: Suffixes of files with named columns.
FORMATS = (".tsv", ".csv", ".jsonl", ".json", ".parquet")

#: The longest CSV field. The limit of the `csv` module (131,072 characters) applies to the whole process, so it is only raised.
_LONGEST = 2**31 - 1

#: The start of a JSON array of objects, in a stream whose lines could also be text.
_ARRAY = re.compile(r"\s*\[\s*(\{|$)")


class Row(NamedTuple):
    """One row of a source.

    Attributes:
        number: From 0, without the header.
        values: Values of the requested columns, in their order; () for a malformed row that is kept.
        names: Names of these columns in the source.
        source: The file or stream, for messages.
        line: The row's first line, from 1; None in Parquet files and JSON arrays.
    """

    number: int
    values: tuple[Any, ...]
    names: tuple[str, ...]
    source: str
    line: int | None = None

    @property
    def place(self) -> str:
        """Source and line, or source and row number, for messages."""
        return f"{self.source}, " + (f"row {self.number}" if self.line is None else f"line {self.line}")


class MissingColumnError(DataError):
    """A source lacks a column.

    Attributes:
        column: The requested name.
    """

    def __init__(self, column: str, message: str) -> None:
        super().__init__(message)
        self.column = column


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns to read from a source.

    Attributes:
        names: For each column, the names that it may have; the usual one first.
        cure: What to do if a column is missing, for messages.
    """

    names: tuple[tuple[str, ...], ...]
    cure: str = "correct its name there, or the task's columns"

    def find(self, header: Sequence[str], place: str) -> list[int]:
        """Find the columns in a header.

        Args:
            header: Names of all columns of the source.
            place: The source, for messages.

        Returns:
            Positions of the columns.

        Raises:
            MissingColumnError: A column is missing.
            DataError: The header has a column twice.
        """
        duplicates = sorted({name for name in header if name.strip() and header.count(name) > 1})
        if duplicates:
            raise DataError(f"{place}, header: duplicate column {duplicates[0]!r}; rename one of the two")
        return [header.index(name) for name in self.named(header, place)]

    def named(self, header: Collection[str], place: str) -> tuple[str, ...]:
        """Return the columns' names in a header. Raises MissingColumnError."""
        matches = [next((name for name in names if name in header), None) for names in self.names]
        for name, names in zip(matches, self.names, strict=True):
            if name is None:
                either = repr(names[0]) + "".join(f" or {alternative!r}" for alternative in names[1:])
                available = ", ".join(map(short, header)) or "none"
                raise MissingColumnError(
                    names[0],
                    f"{place}: no column {either}{nearest(names[0], header)}; the columns are {available}; {self.cure}",
                )
        return tuple(name for name in matches if name is not None)


def short(value: Any) -> str:
    """Shorten a value for messages."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def read_rows(path: Path, columns: Columns, *, header: Sequence[str] = (), keep_broken: bool = False) -> Iterator[Row]:
    """Read the rows of a file with named columns.

    Args:
        path: The file; its suffix, one of :data:`FORMATS`, decides how it is read.
        columns: The columns to read.
        header: Names of the columns of a TSV file without a header.
        keep_broken: Whether TSV rows with too few or too many fields have no values instead of being errors.

    Yields:
        The rows, in order.

    Raises:
        DataError: The file can't be read or is malformed; the message names the place.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet_rows(path, columns)
    lines = _decoded(file_lines(path), str(path))
    if suffix == ".tsv":
        return _tsv_rows(lines, str(path), columns, header, keep_broken)
    if suffix == ".csv":
        return _csv_rows(lines, str(path), columns)
    if suffix in (".jsonl", ".json"):
        return _json_rows(lines, str(path), columns)
    raise DataError(f"{path}: unknown file type; the suffix must be one of {', '.join(FORMATS)}")


def column_names(path: Path) -> tuple[str, ...]:
    """Return the names of a file's columns, without columns that have no name.

    Args:
        path: The file; its suffix, one of :data:`FORMATS`, decides how it is read. Of JSON objects, all are read, and the
            keys that every one of them has are its columns.

    Raises:
        DataError: The file can't be read or is malformed.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        with _open_parquet(path) as file:
            names = list(file.schema_arrow.names)
    elif suffix in (".jsonl", ".json"):
        keys = _CommonKeys(())
        for _ in read_rows(path, keys):
            pass
        names = keys.common
    else:
        header = _Header(())
        next(read_rows(path, header), None)
        names = header.fields
    return tuple(name for name in names if name.strip())


@dataclasses.dataclass(frozen=True)
class _Header(Columns):
    """Reads no column and records the header."""

    fields: list[str] = dataclasses.field(default_factory=list)

    def find(self, header: Sequence[str], place: str) -> list[int]:
        self.fields.extend(header)
        return super().find(header, place)


@dataclasses.dataclass(frozen=True)
class _CommonKeys(Columns):
    """Reads no key and records those that all objects have."""

    common: list[str] = dataclasses.field(default_factory=list)
    seen: list[str] = dataclasses.field(default_factory=list)

    def named(self, header: Collection[str], place: str) -> tuple[str, ...]:
        self.common[:] = [key for key in self.common if key in header] if self.seen else header
        self.seen[:] = [place]
        return ()


def read_lines(lines: Iterable[bytes | str], name: str, columns: Columns) -> Iterator[Row]:
    """Read the rows of a stream: lines of text (a pair is separated by a tab), JSON objects, or one JSON array of objects.

    Args:
        lines: The lines of the stream.
        name: Name of the stream, for messages.
        columns: The texts of a line, or the keys of an object.

    Yields:
        The rows, in order.

    Raises:
        DataError: The stream is malformed; the message names the place.
    """
    decoded = _decoded(lines, name)
    number, blank = 0, 0  # `blank` is the first of the blank lines since the last row
    for line, raw in enumerate(decoded, 1):
        text = raw.removesuffix("\n").removesuffix("\r")
        if not text.strip(" "):
            blank = blank or line
            continue
        if text.lstrip().startswith("{"):
            yield _object_row(_decode(text, f"{name}, line {line}"), number, name, columns, line)
        elif not number and _ARRAY.match(text):
            yield from _array_rows("\n" * (line - 1) + raw + "".join(decoded), name, columns)
            return
        elif blank:
            raise DataError(f"{name}, line {blank}: the text is empty; fill it in, or remove the line")
        else:
            parts = tuple(text.split("\t"))
            if len(parts) != len(columns.names):
                expected = [names[0] for names in columns.names]
                raise DataError(
                    f"{name}, line {line}: {len(parts)} text(s) where the model takes {len(expected)}; "
                    f"give {' and '.join(expected)} with a tab between, or JSON objects with these keys"
                )
            yield Row(number, parts, tuple(names[0] for names in columns.names), name, line)
        number, blank = number + 1, 0


def lines_with_text(lines: Iterable[bytes | str], name: str) -> Iterator[tuple[int, str]]:
    """Yield (line from 1, text) of a stream with one row per line; blank lines at the end are skipped. Raises DataError."""
    blank = 0
    for line, raw in enumerate(_decoded(lines, name), 1):
        if text := raw.strip():
            if blank:
                raise DataError(f"{name}, line {blank}: the line is empty; fill it in, or remove it")
            yield line, text
        else:
            blank = blank or line


def in_any_case(path: Path) -> Path:
    """Find a file or folder, ignoring upper and lower case in its name.

    Args:
        path: The file or folder.

    Returns:
        `path` if it exists; else the entry beside it whose name differs in case only; else `path`.

    Raises:
        DataError: Several names differ in case only.
    """
    if path.exists() or not path.parent.is_dir():
        return path
    try:
        alike = sorted(p for p in path.parent.iterdir() if p.name.casefold() == path.name.casefold())
    except OSError:
        return path
    if len(alike) > 1:
        raise DataError(
            f"{path}: no such file, but its folder holds {' and '.join(p.name for p in alike)}; keep one of them"
        )
    return alike[0] if alike else path


# --- lines ------------------------------------------------------------------------------------------------------------


def file_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, for :func:`read_lines` and :func:`lines_with_text`. Raises DataError."""
    try:
        with open(path, "rb") as f:
            yield from f
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from None


def _decoded(lines: Iterable[bytes | str], name: str) -> Iterator[str]:
    """Decode lines and keep their ends. Only a line feed ends a line: texts can contain rarer separators. Raises DataError."""
    offset = 0
    for line, raw in enumerate(lines, 1):
        null = raw.find("\0") if isinstance(raw, str) else raw.find(b"\0")
        if null >= 0:
            raise DataError(
                f"{name}, line {line}: a null byte at byte {offset + null}; the file is damaged, or saved as UTF-16"
            )
        start = offset
        offset += len(raw)
        if isinstance(raw, bytes):
            mark = 3 if line == 1 and raw.startswith(b"\xef\xbb\xbf") else 0
            try:
                yield raw[mark:].decode("utf-8")
            except UnicodeDecodeError as error:
                at = mark + error.start
                raise DataError(
                    f"{name}, line {line}: not UTF-8 at byte {start + at} (0x{raw[at]:02x}); save the file as UTF-8"
                ) from None
        else:
            yield raw.removeprefix("\ufeff") if line == 1 else raw


# --- tables -----------------------------------------------------------------------------------------------------------


def _tsv_rows(
    lines: Iterator[str], name: str, columns: Columns, header: Sequence[str], keep_broken: bool
) -> Iterator[Row]:
    """Tab-separated values as GLUE writes them: no quoting and no escaping, one row per line."""
    first = 2
    if header:
        first = 1
    else:
        line = next(lines, "").removesuffix("\n").removesuffix("\r")
        header = line.split("\t")
        if not line and not any(following.strip() for following in lines):
            raise DataError(f"{name}: the file is empty")
    positions = columns.find(header, name)
    names = tuple(header[at] for at in positions)
    blank: list[str] = []  # rows only if non-blank lines follow
    number = 0
    for text in lines:
        text = text.removesuffix("\n").removesuffix("\r")
        if not text:
            blank.append(text)
            continue
        for row in (*blank, text):
            fields = row.split("\t")
            line_number = number + first
            if len(fields) == len(header):
                yield Row(number, tuple([fields[at] for at in positions]), names, name, line_number)
            elif keep_broken:
                yield Row(number, (), names, name, line_number)
            else:
                raise _bad_width(f"{name}, line {line_number}", len(header), len(fields), row)
            number += 1
        blank.clear()


def _bad_width(place: str, expected: int, got: int, line: str) -> DataError:
    return DataError(f"{place}: expected {expected} columns, got {got}: {short(line)}; correct or remove the line")


def _csv_rows(lines: Iterator[str], name: str, columns: Columns) -> Iterator[Row]:
    """Comma-separated values with double quotes; a quoted text can span lines."""
    # A carriage return also ends a line of CSV.
    pieces = chain.from_iterable(_at_returns(line) for line in lines)
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST))
    reader = csv.reader(pieces, strict=True)
    header: list[str] = []
    positions: list[int] = []
    names: tuple[str, ...] = ()
    number, start = 0, 1
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{name}, line {start}: not valid CSV: {error}; check the quotes of this row") from None
        if fields is None:
            break
        line, start = start, reader.line_num + 1
        if not fields:  # a blank line is no row
            continue
        if not header:
            header, positions = fields, columns.find(fields, name)
            names = tuple(fields[at] for at in positions)
            continue
        if len(fields) != len(header):
            raise _bad_width(f"{name}, line {line}", len(header), len(fields), ",".join(fields))
        yield Row(number, tuple([fields[at] for at in positions]), names, name, line)
        number += 1
    if not header:
        raise DataError(f"{name}: the file is empty")


def _at_returns(line: str) -> Iterable[str]:
    return re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", line) if "\r" in line else (line,)


@contextlib.contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    """Open a Parquet file. Raises DataError if it can't be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from None


def parquet_table(path: Path) -> Any:
    """Read a Parquet file as an Arrow table, with the metadata of its schema. Raises DataError."""
    with _open_parquet(path) as file:
        return file.read()


def parquet_batches(path: Path, columns: Columns, rows: int = 1024) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """Read some columns of a Parquet file in parts.

    Args:
        path: The file.
        columns: The columns to read.
        rows: Rows of a part.

    Yields:
        The columns' names, and an Arrow array of each.

    Raises:
        DataError: The file cannot be read, or a column is missing.
    """
    with _open_parquet(path) as file:
        header = list(file.schema_arrow.names)
        names = tuple(header[at] for at in columns.find(header, str(path)))
        for batch in file.iter_batches(rows, columns=list(names)):
            yield names, [batch.column(name) for name in names]


def _parquet_rows(path: Path, columns: Columns) -> Iterator[Row]:
    number = 0
    for names, arrays in parquet_batches(path, columns):
        try:
            lists = [array.to_pylist() for array in arrays]
        except (ValueError, OverflowError) as error:  # not UTF-8, a date outside Python's range, an unknown time zone
            raise DataError(f"{path}: not a readable Parquet file: {error}") from None
        for values in zip(*lists, strict=True):
            yield Row(number, values, names, str(path))
            number += 1


# --- JSON -------------------------------------------------------------------------------------------------------------


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key {next(n for n in names if names.count(n) > 1)!r}")
    return keys


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)


def _json_rows(lines: Iterator[str], name: str, columns: Columns) -> Iterator[Row]:
    """One JSON object per line, or one array of objects, regardless of the suffix; blank lines are skipped."""
    number = 0
    for line, text in enumerate(lines, 1):
        if not text.strip():
            continue
        if not number and text.lstrip().startswith("["):
            yield from _array_rows("\n" * (line - 1) + text + "".join(lines), name, columns)
            return
        yield _object_row(_decode(text, f"{name}, line {line}"), number, name, columns, line)
        number += 1


def _decode(text: str, place: str) -> Any:
    try:
        return _DECODER.decode(text.strip())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not valid JSON: {error}; each line must hold one JSON object") from None


def _array_rows(text: str, name: str, columns: Columns) -> Iterator[Row]:
    """Decode the objects of a JSON array one by one."""
    number, at = 0, _after_space(text, text.index("[") + 1)
    closed = text[at : at + 1] == "]"
    while not closed:
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}, row {number}: not valid JSON: {error}; an array of objects is expected") from None
        yield _object_row(value, number, name, columns, None)
        number, at = number + 1, _after_space(text, at)
        closed = text[at : at + 1] == "]"
        if not closed:
            if text[at : at + 1] != ",":
                raise DataError(
                    f"{name}, line {_line(text, at)}: not valid JSON: after a row, a comma or ] is expected"
                )
            at = _after_space(text, at + 1)
    if (end := _after_space(text, at + 1)) < len(text):
        raise DataError(f"{name}, line {_line(text, end)}: {short(text[end:])} follows the array's end; remove it")


_SPACE = re.compile(r"[ \t\r\n]*")


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _object_row(value: Any, number: int, name: str, columns: Columns, line: int | None) -> Row:
    row = Row(number, (), (), name, line)
    if not isinstance(value, dict):
        raise DataError(
            f"{row.place}: {short(value)} is not a JSON object; each row must be an object with the columns as its keys"
        )
    names = columns.named(value, row.place)
    return row._replace(values=tuple([value[key] for key in names]), names=names)
