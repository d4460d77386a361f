"""Arrow files of one record batch: written atomically, checked when opened, memory-mapped."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from leebert.errors import CacheError, DataError
from leebert.files import replaced


class Fingerprinted(Protocol):
    """The content of a cache file, with the digest of the data and settings that produced it."""

    @property
    def fingerprint(self) -> str: ...


Cached = TypeVar("Cached", bound=Fingerprinted)

#: Version of the file layout; files of another version are rebuilt.
LAYOUT = 2


def write(columns: Mapping[str, Any], metadata: Mapping[str, Any], path: Path) -> None:
    """Write columns of equal length to a file, atomically.

    One record batch holds all samples, so that each column of the mapped file is one flat array.

    Args:
        columns: Arrow arrays of N values by name.
        metadata: Values stored beside the columns, as strings.
        path: The file to write; its folder is created.

    Raises:
        DataError: The file can't be written.
    """
    batch = pa.record_batch(dict(columns))
    facts = {key: str(value) for key, value in {**metadata, "layout": LAYOUT}.items()}
    batch = batch.replace_schema_metadata({**facts, "crc32": str(_checksum(batch, facts))})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            replaced(path, sync=False) as temporary,
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_file(sink, batch.schema) as writer,
        ):
            writer.write_batch(batch)
    except OSError as error:
        raise DataError(f"{path}: can't be written: {error}; free some space, or choose another folder") from None


def open_mapped(path: Path) -> tuple[pa.RecordBatch, dict[str, str]]:
    """Map a file into memory and check it.

    Args:
        path: A file made by :func:`write`.

    Returns:
        The record batch and the metadata.

    Raises:
        ValueError: The layout or the checksum differs.
        OSError: The file can't be read.
        pyarrow.ArrowException: The file is damaged.
    """
    with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
        if reader.num_record_batches != 1:
            raise ValueError(f"{reader.num_record_batches} record batches, not 1")
        batch = reader.get_batch(0)
    batch.validate(full=True)
    meta = {k.decode(): v.decode() for k, v in (batch.schema.metadata or {}).items()}
    crc32 = int(meta.pop("crc32"))
    if int(meta["layout"]) != LAYOUT or crc32 != _checksum(batch, meta):
        raise ValueError("checksum or layout differs")
    return batch, meta


def load_or_build(
    path: Path, key: str, mismatch: str, load: Callable[[Path], Cached], build: Callable[[], Cached]
) -> Cached:
    """Load a cache file, or build it where it is missing, damaged or has another fingerprint.

    Processes that build the same file at once each write a complete copy; the last one stays.

    Args:
        path: The cache file.
        key: The fingerprint that the file must have.
        mismatch: What a file with another fingerprint holds, for the warning.
        load: Opens the file. Raises CacheError where it is damaged.
        build: Writes the file and opens it.

    Returns:
        The content of the file.
    """
    if path.exists():
        try:
            content = load(path)
            if content.fingerprint == key:
                return content
            problem = f"{path}: holds {mismatch}"
        except CacheError as error:
            problem = str(error)
        warnings.warn(f"{problem}; the file is rebuilt", stacklevel=1)
    return build()


def flat(column: Any) -> np.ndarray:
    """Return the concatenated values of a column of lists, without a copy."""
    values: np.ndarray = column.values.to_numpy(zero_copy_only=True)
    return values


def fingerprint(path: str | Path) -> str:
    """Read the fingerprint of a cache file.

    Args:
        path: A file of tokens or pixels.

    Returns:
        The digest of the data and settings that produced the file.

    Raises:
        DataError: The file does not exist.
        ValueError, OSError, pyarrow.ArrowException: As :func:`open_mapped`.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file of tokens or pixels")
    return open_mapped(Path(path))[1]["fingerprint"]


def _checksum(batch: pa.RecordBatch, facts: Mapping[str, str]) -> int:
    """CRC-32 of the columns' names, types and values, and of the metadata."""
    described = [str(field) for field in batch.schema] + [f"{key}={facts[key]}" for key in sorted(facts)]
    value = zlib.crc32("\n".join(described).encode())
    for column in batch.columns:
        if pa.types.is_list(column.type):
            parts = [column.offsets, column.values]
        else:
            parts = [column.values] if pa.types.is_fixed_size_list(column.type) else [column]
        for part in parts:
            value = zlib.crc32(memoryview(part.to_numpy(zero_copy_only=True)), value)
    return value
