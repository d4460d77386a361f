"""Read and check texts from files and streams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from leebert.data.readers import FORMATS, Columns, Row, file_lines, read_lines, read_rows, short
from leebert.errors import ConfigError, DataError
from leebert.images.tasks import ENDINGS


def is_text(value: Any) -> bool:
    """Whether a value is a non-empty text that every tokenizer accepts."""
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value and encodes(value)


def encodes(value: str) -> bool:
    """Whether a text can be encoded: JSON can hold half of a surrogate pair, which has no encoding."""
    return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)


def bad_text(place: str, column: str, value: Any) -> DataError:
    """Return the error for a value that is not a valid text (:func:`is_text`).

    Args:
        place: File and line or row.
        column: Name of the column.
        value: The value.
    """
    cell = f"{place}, column {column!r}"
    if value is None or (isinstance(value, str) and not value.strip()):
        return DataError(f"{cell}: the text is empty; fill it in, or remove the row")
    if not isinstance(value, str):
        return DataError(f"{cell}: {short(value)} is not text but {type(value).__name__}; write it as a string")
    kind = "a null character" if "\0" in value else "half of a surrogate pair, which has no encoding"
    return DataError(f"{cell}: {short(value)} contains {kind}; clean the text, or remove the row")


def checked(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the rows unchanged. Raises DataError at the first value that is not a valid text."""
    for row in rows:
        for name, value in zip(row.names, row.values, strict=True):
            if not is_text(value):
                raise bad_text(row.place, name, value)
        yield row


def characters(row: Row) -> int:
    """Count the characters of a row of texts."""
    return sum(map(len, row.values))


def read_texts(source: Path | Iterable[bytes | str], columns: Columns, name: str = "") -> Iterator[Row]:
    """Read texts from a file or a stream.

    Args:
        source: A file with named columns (:data:`leebert.data.readers.FORMATS`) or a text per line; or the lines of a stream.
        columns: The columns of text.
        name: Name of the stream, for messages.

    Yields:
        Rows of texts.

    Raises:
        DataError: The source can't be read, or a value is not a valid text; the message names the place.
    """
    if isinstance(source, Path):
        return checked(_read_file(source, columns))
    return checked(read_lines(source, name, columns))


def texts_of(
    names: Sequence[tuple[str, ...]], source: Path | Iterable[bytes | str], columns: Sequence[str] = ()
) -> Iterator[Row]:
    """Read the texts for a model from a file or a stream.

    Args:
        names: Accepted names of each text column of the model; (): one text per row.
        source: The file, or the lines of stdin.
        columns: Names of the text columns in the file; (): those of the model.

    Raises:
        ConfigError: The number of columns differs from the model's.
        DataError: A value is not a text; the message names its place.
    """
    if names and columns and len(columns) != len(names):
        raise ConfigError(
            f"--text {', '.join(columns)}: this model takes {len(names)} text column(s), such as "
            f"{', '.join(accepted[0] for accepted in names)}; repeat --text for each"
        )
    accepted = tuple((name,) for name in columns) if columns else tuple(names) or (("text",),)
    requested = Columns(accepted, "name your text column with --text")
    return read_texts(source, requested) if isinstance(source, Path) else read_texts(source, requested, "stdin")


def _read_file(path: Path, columns: Columns) -> Iterator[Row]:
    suffix = path.suffix.lower()
    if path.is_dir() or suffix in ENDINGS:
        raise DataError(f"{path}: the model takes texts: give a file ({', '.join(FORMATS)}, or one text per line)")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if suffix in FORMATS:
        yield from read_rows(path, columns)
        return
    yield from read_lines(file_lines(path), str(path), columns)
