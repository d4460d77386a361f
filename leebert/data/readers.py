"""Rows from files, streams and tables: CSV, TSV, JSON lines, JSON arrays, Parquet and lines of text, by one set of rules.

Training, evaluation, prediction, calibration and the files of GLUE's server all read here, so that a row which one of
them takes no other refuses. Files are read as they are consumed: only a JSON array is held as a whole.

The rules: UTF-8, with or without a byte order mark; no null character. Rows are numbered from 0, without the header.
CSV has double quotes, and fields of any length; TSV has no quoting, as GLUE's files have none. Blank lines are no rows
in CSV and JSON; in TSV and text, where a line is a row, they are none at the end of the file only. A column or key that
is duplicate is an error, unless it has no name.
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

#: Endings of the files with named columns.
FORMATS = (".tsv", ".csv", ".jsonl", ".json", ".parquet")

#: The longest field of CSV. The module's own limit, 131,072 characters, is for the whole process, so it is only raised.
_LONGEST = 2**31 - 1

#: How an array of objects begins where a line could be text, too.
_ARRAY = re.compile(r"\s*\[\s*(\{|$)")


class Row(NamedTuple):
    """One row of a source.

    number: from 0, without the header. values: of the columns that were asked for, in their order; () for a row with
    too few or too many fields, where such rows are kept. names: what the source calls these columns. line: where it
    begins, from 1; None where rows have no lines of their own.
    """

    number: int
    values: tuple[Any, ...]
    names: tuple[str, ...]
    source: str
    line: int | None = None

    @property
    def place(self) -> str:
        """Source and line, or source and row, for messages."""
        return f"{self.source}, " + (f"row {self.number}" if self.line is None else f"line {self.line}")


class MissingColumnError(DataError):
    """A source lacks a column; `column` is the name that was asked for."""

    def __init__(self, column: str, message: str) -> None:
        super().__init__(message)
        self.column = column


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns that are wanted of a source.

    names: for each column the names that it may have, the usual one first. cure: what to do about one that is missing.
    """

    names: tuple[tuple[str, ...], ...]
    cure: str = "correct its name there, or the task's columns"

    def find(self, header: Sequence[str], where: str) -> list[int]:
        """The positions of the columns in a header. Raises DataError for one that is missing or there twice."""
        twice = sorted({name for name in header if name.strip() and header.count(name) > 1})
        if twice:
            raise DataError(f"{where}, header: duplicate column {twice[0]!r}; rename one of the two")
        return [header.index(name) for name in self.named(header, where)]

    def named(self, header: Collection[str], where: str) -> tuple[str, ...]:
        """What a header calls the columns."""
        found = [next((name for name in names if name in header), None) for names in self.names]
        for name, names in zip(found, self.names, strict=True):
            if name is None:
                either = repr(names[0]) + "".join(f" or {other!r}" for other in names[1:])
                there = ", ".join(map(short, header)) or "none"
                raise MissingColumnError(
                    names[0],
                    f"{where}: there is no column {either}{nearest(names[0], header)}; the columns are {there}; {self.cure}",
                )
        return tuple(name for name in found if name is not None)


def short(value: Any) -> str:
    """A value as an error shows it."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def read_rows(path: Path, columns: Columns, *, header: Sequence[str] = (), keep_broken: bool = False) -> Iterator[Row]:
    """The rows of a file with named columns, by its ending, which is one of :data:`FORMATS`.

    Args:
        path: The file.
        columns: What is wanted of it.
        header: The columns' names where a TSV file has no line for them.
        keep_broken: Rows of a TSV file with too few or too many fields come without values, instead of being errors.

    Raises:
        DataError: Whatever is wrong, with the place.
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
    raise DataError(f"{path}: ends in none of {', '.join(FORMATS)}")


def read_lines(lines: Iterable[bytes | str], name: str, columns: Columns) -> Iterator[Row]:
    """The rows of a stream: a text in each line (two with a tab between), JSON objects, or one JSON array of them.

    Args:
        lines: What the stream holds, line by line.
        name: What errors call it.
        columns: The texts, or keys of the objects, that are wanted.

    Raises:
        DataError: Whatever is wrong, with the place.
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
                wanted = [names[0] for names in columns.names]
                raise DataError(
                    f"{name}, line {line}: {len(parts)} text(s) where the model takes {len(wanted)}; "
                    f"give {' and '.join(wanted)} with a tab between, or JSON objects with these keys"
                )
            yield Row(number, parts, tuple(names[0] for names in columns.names), name, line)
        number, blank = number + 1, 0


def lines_with_text(lines: Iterable[bytes | str], name: str) -> Iterator[tuple[int, str]]:
    """(line from 1, text) of a stream of which every line is a row, without blank ones at the end. Raises DataError."""
    blank = 0
    for line, raw in enumerate(_decoded(lines, name), 1):
        if text := raw.strip():
            if blank:
                raise DataError(f"{name}, line {blank}: the line is empty; fill it in, or remove it")
            yield line, text
        else:
            blank = blank or line


def in_any_case(path: Path) -> Path:
    """A file or folder that is there, or else the one beside it whose name differs in upper and lower case alone.

    The path itself where there is none. Raises DataError where there are several.
    """
    if path.exists() or not path.parent.is_dir():
        return path
    try:
        alike = sorted(p for p in path.parent.iterdir() if p.name.casefold() == path.name.casefold())
    except OSError:
        return path
    if len(alike) > 1:
        raise DataError(f"{path}: no such file, but {' and '.join(p.name for p in alike)} lie there; keep one of them")
    return alike[0] if alike else path


# --- lines ------------------------------------------------------------------------------------------------------------


def file_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, for :func:`read_lines` and :func:`lines_with_text`. Raises DataError."""
    try:
        with open(path, "rb") as f:
            yield from f
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from None


def _decoded(lines: Iterable[bytes | str], name: str) -> Iterator[str]:
    """Lines of text with their ends; only a line feed ends one, since texts hold the rarer separators. Raises DataError."""
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
        if not line and not any(rest.strip() for rest in lines):
            raise DataError(f"{name}: the file is empty")
    wanted = columns.find(header, name)
    names = tuple(header[at] for at in wanted)
    blank: list[str] = []  # rows only if others follow
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
                yield Row(number, tuple([fields[at] for at in wanted]), names, name, line_number)
            elif keep_broken:
                yield Row(number, (), names, name, line_number)
            else:
                raise _bad_width(f"{name}, line {line_number}", len(header), len(fields), row)
            number += 1
        blank.clear()


def _bad_width(where: str, expected: int, got: int, line: str) -> DataError:
    return DataError(f"{where}: expected {expected} columns, got {got}: {short(line)}; correct or remove the line")


def _csv_rows(lines: Iterator[str], name: str, columns: Columns) -> Iterator[Row]:
    """Comma-separated values with the usual double quotes; a quoted text may span lines."""
    # A carriage return alone ends a line of CSV, too.
    pieces = chain.from_iterable(_at_returns(line) for line in lines)
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST))
    reader = csv.reader(pieces, strict=True)
    header: list[str] = []
    wanted: list[int] = []
    names: tuple[str, ...] = ()
    number, start = 0, 1
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{name}, line {start}: not valid CSV: {error}; check the quotes of that row") from None
        if fields is None:
            break
        line, start = start, reader.line_num + 1
        if not fields:  # a blank line is no row
            continue
        if not header:
            header, wanted = fields, columns.find(fields, name)
            names = tuple(fields[at] for at in wanted)
            continue
        if len(fields) != len(header):
            raise _bad_width(f"{name}, line {line}", len(header), len(fields), ",".join(fields))
        yield Row(number, tuple([fields[at] for at in wanted]), names, name, line)
        number += 1
    if not header:
        raise DataError(f"{name}: the file is empty")


def _at_returns(line: str) -> Iterable[str]:
    return re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", line) if "\r" in line else (line,)


@contextlib.contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    """A Parquet file to read from. Raises DataError for whatever is wrong with it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from None


def parquet_table(path: Path) -> Any:
    """A whole Parquet file as an Arrow table, with what its schema says beside the columns. Raises DataError."""
    with _open_parquet(path) as file:
        return file.read()


def parquet_batches(path: Path, columns: Columns, rows: int = 1024) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """(the columns' names, an Arrow array of each) for so many rows at a time. Raises DataError."""
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
        except (ValueError, OverflowError) as error:  # no UTF-8, no date of Python's, an unknown time zone
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
    """One JSON object per line, or one array of objects, whatever the file is called; blank lines are no rows."""
    number = 0
    for line, text in enumerate(lines, 1):
        if not text.strip():
            continue
        if not number and text.lstrip().startswith("["):
            yield from _array_rows("\n" * (line - 1) + text + "".join(lines), name, columns)
            return
        yield _object_row(_decode(text, f"{name}, line {line}"), number, name, columns, line)
        number += 1


def _decode(text: str, where: str) -> Any:
    try:
        return _DECODER.decode(text.strip())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON: {error}; each line holds one JSON object") from None


def _array_rows(text: str, name: str, columns: Columns) -> Iterator[Row]:
    """The objects of one JSON array, each decoded when it is asked for."""
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
        raise DataError(f"{row.place}: {short(value)} is no JSON object; each row is one, with the columns as its keys")
    names = columns.named(value, row.place)
    return row._replace(values=tuple([value[key] for key in names]), names=names)
