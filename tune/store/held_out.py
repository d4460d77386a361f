"""The validation logits of each finished run: their paths, and reading them with a check of their digests.

A run's end record names the files and holds the SHA-256 of each (`digests`). A file with another digest is not read: it
was truncated, damaged, or belongs to another run. Ledgers of older versions have no digests; their files are read
unchecked.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leebert.errors import StorageError, SweepError
from leebert.evaluate import RecordedLogits
from tune.store import logits
from tune.store.history import CellKey
from tune.store.ledger import LedgerRecord

#: Folders within a sweep's: of the logits of validation folds, and of evaluation splits.
HELD_OUT = "cells"
EVALUATED = "evaluated"

#: The number of damaged files that a warning names; it counts the others.
NAMED = 3


def held_out_path(folder: Path, cell_end: Mapping[str, Any]) -> Path:
    """Return the path of a finished run's validation logits.

    Args:
        folder: The sweep's folder.
        cell_end: The record of the run's end.

    Raises:
        KeyError: The run has diverged, so it has no logits.
    """
    return folder / HELD_OUT / Path(cell_end["held_out"]).name


def evaluated_paths(folder: Path, cell_end: Mapping[str, Any]) -> dict[str, Path]:
    """Return the paths of the logits of a finished run's best epoch, by evaluation split.

    Args:
        folder: The sweep's folder.
        cell_end: The record of the run's end.
    """
    return {split: folder / EVALUATED / Path(name).name for split, name in cell_end.get("evaluated", {}).items()}


def save_held_out(path: Path, held_out: RecordedLogits, row_ids: np.ndarray) -> str:
    """Write row number, label and M×K logits per sample, atomically (see `tune.store.logits`).

    Args:
        path: The Parquet file.
        held_out: The logits (M, N, K) and labels (N,).
        row_ids: (N,) row numbers of the samples in the training split.

    Returns:
        The SHA-256 of the file in hexadecimal, for the ledger.

    Raises:
        StorageError: If it cannot be written.
    """
    import pyarrow as pa

    columns = {"row": pa.array(row_ids, pa.int64()), "label": pa.array(held_out.labels, pa.int64())}
    try:
        return logits.write(path, columns, held_out.logits, held_out.layers, held_out.depth)
    except OSError as error:
        raise StorageError(f"{path} can't be written: {error.strerror or error}") from None


def load_held_out(path: Path, digest: str | None = None) -> tuple[RecordedLogits, np.ndarray]:
    """Read a run's logits and the row numbers of their samples.

    Args:
        path: The Parquet file.
        digest: Its SHA-256 as recorded in the ledger; None skips the check.

    Returns:
        The logits with their labels, and (N,) row numbers.

    Raises:
        SweepError: The file is missing, damaged, or not the recorded one.
    """
    import pyarrow as pa

    data = _contents(path, digest)
    try:
        columns, values, layers = logits.read(data)
        return RecordedLogits(values, columns["label"], *layers), columns["row"]
    # Arrow raises its own error for a file that is not Parquet; a foreign table fails in any of the other ways.
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SweepError(
            f"{path} can't be read as a run's validation logits: {type(error).__name__}: {reason}"
        ) from None


def _contents(path: Path, digest: str | None) -> bytes:
    """Read a file with the recorded digest; SweepError for any other."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise SweepError(f"{path} is missing: the validation logits of a finished run") from None
    except OSError as error:
        raise SweepError(f"{path} can't be read: {error.strerror or error}") from None
    if digest is not None and (actual := hashlib.sha256(data).hexdigest()) != digest:
        raise SweepError(
            f"{path} is not the file that the ledger records (SHA-256 {actual[:12]}, not {digest[:12]}): it was damaged, or "
            "belongs to another run"
        )
    return data


def cell_logits(folder: Path, cell_end: Mapping[str, Any]) -> tuple[RecordedLogits, np.ndarray]:
    """Read the validation logits of a finished run, and check them against its end record.

    Args:
        folder: The sweep's folder.
        cell_end: The record of the run's end.

    Returns:
        The logits, and the row numbers (N,) of their samples in the training split.

    Raises:
        SweepError: As :func:`load_held_out`.
    """
    if "held_out" not in cell_end:
        raise SweepError("the run's end record names no validation logits")
    return _checked(held_out_path(folder, cell_end), cell_end)


def evaluated_logits(folder: Path, cell_end: Mapping[str, Any]) -> dict[str, RecordedLogits]:
    """Read the logits of a finished run's evaluation splits, by split.

    Args:
        folder: The sweep's folder.
        cell_end: The record of the run's end.

    Raises:
        SweepError: As :func:`load_held_out`.
    """
    return {split: _checked(path, cell_end)[0] for split, path in evaluated_paths(folder, cell_end).items()}


def _checked(path: Path, cell_end: Mapping[str, Any]) -> tuple[RecordedLogits, np.ndarray]:
    return load_held_out(path, cell_end.get("digests", {}).get(path.name))


def damaged(folder: Path, cells: Mapping[CellKey, LedgerRecord]) -> dict[CellKey, str]:
    """Find the finished runs with a missing or damaged file.

    Args:
        folder: The sweep's folder.
        cells: Records of the runs' ends.

    Returns:
        Run → the problem of its first such file.
    """
    problems = {}
    for key, record in cells.items():
        paths = [held_out_path(folder, record)] if "held_out" in record else []  # others have diverged
        try:
            for path in (*paths, *evaluated_paths(folder, record).values()):
                if (digest := record.get("digests", {}).get(path.name)) is None:
                    load_held_out(path)
                else:
                    _contents(path, digest)  # a file with the right digest is readable
        except SweepError as error:
            problems[key] = str(error)
    return problems


def count_unchecked(cells: Iterable[LedgerRecord]) -> int:
    """Count the finished runs whose logits have no digest: damage to them cannot be detected."""
    return sum("held_out" in record and not record.get("digests") for record in cells)


def cell_name(key: CellKey) -> str:
    """Return a run's name in messages."""
    return f"configuration {key[0]}, seed {key[1]}, fold {key[2]}"


def warn_unreadable(folder: Path, problems: Mapping[CellKey, str]) -> None:
    """Warn of runs without readable logits, and name the command that restores them."""
    if not problems:
        return
    first = [f"{cell_name(key)}: {problem}" for key, problem in list(problems.items())[:NAMED]]
    remainder = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
    warnings.warn(
        f"{'; '.join(first)}{remainder}; results computed from logits are without them; restore them by: leebert-tune resume "
        f"{folder} --repair",
        stacklevel=1,
    )
