"""Logits as Parquet: a row per sample, with its M×K logits as one list whose shape is in the file's metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leebert.files import replaced


def write(
    path: Path, columns: Mapping[str, Any], logits: np.ndarray, layers: tuple[int, ...] = (), depth: int = 0
) -> str:
    """Write logits atomically.

    Args:
        path: The Parquet file.
        columns: Further columns, pyarrow arrays of N values.
        logits: (M, N, K), stored as float32.
        layers: As in :class:`leebert.evaluate.RecordedLogits`.
        depth: As in :class:`leebert.evaluate.RecordedLogits`.

    Returns:
        The SHA-256 of the file in hexadecimal.

    Raises:
        OSError: If it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    m, _, k = logits.shape
    flat = pa.array(logits.transpose(1, 0, 2).reshape(-1), pa.float32())
    table = pa.table({**columns, "logits": pa.FixedSizeListArray.from_arrays(flat, m * k)})
    about = {"exits": str(m), "classes": str(k), "layers": json.dumps(layers), "depth": str(depth)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as temporary:  # synced before a record or a best file names it
        pq.write_table(table.replace_schema_metadata(about), temporary, compression="zstd")
        with temporary.open("rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
    return digest


def read(source: Path | bytes) -> tuple[dict[str, np.ndarray], np.ndarray, tuple[tuple[int, ...], int]]:
    """Read a file or its bytes: the columns by name, (M, N, K) logits, and (`layers`, `depth`) as written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(source) if isinstance(source, bytes) else source)
    about = table.schema.metadata
    m, k = int(about[b"exits"]), int(about[b"classes"])
    layers = tuple(json.loads(about.get(b"layers", b"[]"))), int(about.get(b"depth", b"0"))
    flat = table["logits"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    columns = {name: table[name].to_numpy() for name in table.column_names if name != "logits"}
    return columns, np.ascontiguousarray(flat.reshape(-1, m, k).transpose(1, 0, 2)), layers
