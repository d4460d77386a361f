"""What counts as a text, wherever it comes from, and the texts that a saved model is to answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from leebert.data.readers import FORMATS, Columns, Row, file_lines, read_lines, read_rows, short
from leebert.errors import DataError
from leebert.images.tasks import ENDINGS


def is_text(value: Any) -> bool:
    """Whether a value is a text that is not empty, and that every tokenizer takes."""
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value and encodes(value)


def encodes(value: str) -> bool:
    """Whether a text has an encoding: half of a surrogate pair, which JSON can write, has none."""
    return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)


def bad_text(place: str, column: str, value: Any) -> DataError:
    """Why a value is no text (:func:`is_text`), with its place and what to do."""
    where = f"{place}, column {column!r}"
    if value is None or (isinstance(value, str) and not value.strip()):
        return DataError(f"{where}: the text is empty; fill it in, or remove the row")
    if not isinstance(value, str):
        return DataError(f"{where}: {short(value)} is not text but {type(value).__name__}; write it as a string")
    kind = "a null character" if "\0" in value else "half of a surrogate pair, which no encoding can write"
    return DataError(f"{where}: {short(value)} holds {kind}; clean the text, or remove the row")


def checked(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows as they are. Raises DataError at the first that holds something else than texts."""
    for row in rows:
        for name, value in zip(row.names, row.values, strict=True):
            if not is_text(value):
                raise bad_text(row.place, name, value)
        yield row


def read_texts(source: Path | Iterable[bytes | str], columns: Columns, name: str = "") -> Iterator[Row]:
    """The texts of a file of any kind that :mod:`leebert.data.readers` knows, or of a stream called `name`.

    Raises DataError for whatever is no text, with its place.
    """
    if isinstance(source, Path):
        return checked(_read_file(source, columns))
    return checked(read_lines(source, name, columns))


def _read_file(path: Path, columns: Columns) -> Iterator[Row]:
    suffix = path.suffix.lower()
    if path.is_dir() or suffix in ENDINGS:
        known = ", ".join(FORMATS)
        raise DataError(f"{path}: the model takes texts: a file of them ({known}, or a text in each line)")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if suffix in FORMATS:
        yield from read_rows(path, columns)
        return
    yield from read_lines(file_lines(path), str(path), columns)
