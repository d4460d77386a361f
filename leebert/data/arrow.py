"""One batch of Arrow columns in a file: written whole or not at all, checked when it is opened, mapped into memory."""

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
    """Rows of a cache's file, which say what they were made from."""

    @property
    def fingerprint(self) -> str: ...


Cached = TypeVar("Cached", bound=Fingerprinted)

#: Changes with the files' layout, so that older files are not taken for new ones.
LAYOUT = 2


def write(columns: Mapping[str, Any], metadata: Mapping[str, Any], path: Path) -> None:
    """Write columns of equal length; the file appears under its name when it is complete. Raises DataError.

    One batch holds all rows, so that each column of the mapped file is one flat array.
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
    """The batch of a file, mapped, and its metadata. Raises ValueError, OSError or one of Arrow's where it is damaged."""
    with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
        if reader.num_record_batches != 1:
            raise ValueError(f"{reader.num_record_batches} record batches, not 1")
        batch = reader.get_batch(0)
    batch.validate(full=True)
    meta = {k.decode(): v.decode() for k, v in (batch.schema.metadata or {}).items()}
    crc32 = int(meta.pop("crc32"))
    if int(meta["layout"]) != LAYOUT or crc32 != _checksum(batch, meta):
        raise ValueError("its checksum or layout differs")
    return batch, meta


def kept_or_made(
    path: Path, key: str, other: str, kept: Callable[[Path], Cached], make: Callable[[], Cached]
) -> Cached:
    """What a cache's file holds, if that is sound and has this fingerprint, else what is made in its place, with a warning.

    other: what a file of another fingerprint holds, in words. Processes that race for the same file each write their own and
    put it in place whole; either is right.
    """
    if path.exists():
        try:
            rows = kept(path)
            if rows.fingerprint == key:
                return rows
            problem = f"{path}: holds {other}"
        except CacheError as error:
            problem = str(error)
        warnings.warn(f"{problem}; it is made again", stacklevel=1)
    return make()


def flat(column: Any) -> np.ndarray:
    """The values of a column of lists, one after the other, without a copy."""
    values: np.ndarray = column.values.to_numpy(zero_copy_only=True)
    return values


def fingerprint(path: str | Path) -> str:
    """What a file of rows says that it was made from; raises DataError where there is none, and as :func:`open_mapped`."""
    if not Path(path).is_file():
        raise DataError(f"{path}: there is no such file of rows")
    return open_mapped(Path(path))[1]["fingerprint"]


def _checksum(batch: pa.RecordBatch, facts: Mapping[str, str]) -> int:
    """CRC-32 of the values, and of what says what they are: the columns' names and types, and the metadata."""
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
