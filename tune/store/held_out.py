"""The logits that each finished cell leaves: where they lie, and read so that damage is seen.

The record of a cell's end names the files and holds the SHA-256 of each (`digests`). A file with another digest is not
read: it was cut, damaged, or belongs to another cell. Ledgers of older versions have no digests; their files are read
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
from leebert.evaluate import HeldOut
from tune.store import logits
from tune.store.history import CellKey
from tune.store.ledger import LedgerRecord

#: The folder of held-out logits within a sweep's, and that of an evaluation split's.
HELD_OUT = "cells"
EVALUATED = "evaluated"

#: So many damaged files are named in a warning; the others are counted.
NAMED = 3


def held_out_path(folder: Path, cell_end: Mapping[str, Any]) -> Path:
    """Where the held-out logits of a finished cell lie, by the record of its end. KeyError for a diverged one."""
    return folder / HELD_OUT / Path(cell_end["held_out"]).name


def evaluated_paths(folder: Path, cell_end: Mapping[str, Any]) -> dict[str, Path]:
    """Where the logits of a finished cell's best epoch lie, by evaluation split; none where none was evaluated."""
    return {split: folder / EVALUATED / Path(name).name for split, name in cell_end.get("evaluated", {}).items()}


def save_held_out(path: Path, held_out: HeldOut, row_ids: np.ndarray) -> str:
    """Write row id, label and M×K logits per row, atomically (see `tune.store.logits`).

    Returns:
        The SHA-256 of the file in hexadecimal, for the ledger.

    Raises:
        StorageError: where it can't be written.
    """
    import pyarrow as pa

    columns = {"row": pa.array(row_ids, pa.int64()), "label": pa.array(held_out.labels, pa.int64())}
    try:
        return logits.write(path, columns, held_out.logits, held_out.layers, held_out.depth)
    except OSError as error:
        raise StorageError(f"{path} can't be written: {error.strerror or error}") from None


def load_held_out(path: Path, digest: str | None = None) -> tuple[HeldOut, np.ndarray]:
    """A cell's logits and the row ids that they belong to.

    Args:
        path: the Parquet file.
        digest: its SHA-256 as the ledger has it; None: not recorded, so the contents are not checked.

    Raises:
        SweepError: for a file that is missing, damaged, or another than the one that was recorded.
    """
    import pyarrow as pa

    data = _contents(path, digest)
    try:
        columns, values, layers = logits.read(data)
        return HeldOut(values, columns["label"], *layers), columns["row"]
    # Arrow has an error for what is no Parquet; a table that is not ours fails in any of the other ways.
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = " ".join(str(error).split())[:200]
        raise SweepError(f"{path} can't be read as a cell's held-out logits: {type(error).__name__}: {said}") from None


def _contents(path: Path, digest: str | None) -> bytes:
    """The bytes of a file whose digest is as recorded; SweepError otherwise."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise SweepError(f"{path} is missing: the held-out logits of a finished cell") from None
    except OSError as error:
        raise SweepError(f"{path} can't be read: {error.strerror or error}") from None
    if digest is not None and (now := hashlib.sha256(data).hexdigest()) != digest:
        raise SweepError(
            f"{path} is not the file that the ledger records (SHA-256 {now[:12]}, not {digest[:12]}): it was damaged, or is "
            "another cell's"
        )
    return data


def cell_logits(folder: Path, cell_end: Mapping[str, Any]) -> tuple[HeldOut, np.ndarray]:
    """The held-out logits of a finished cell and their row ids, by the record of its end; checked against its digest.

    Raises:
        SweepError: as :func:`load_held_out`.
    """
    if "held_out" not in cell_end:
        raise SweepError("the record of the cell's end names no held-out logits")
    return _checked(held_out_path(folder, cell_end), cell_end)


def evaluated_logits(folder: Path, cell_end: Mapping[str, Any]) -> dict[str, HeldOut]:
    """The same of a finished cell's evaluation splits, by split."""
    return {split: _checked(path, cell_end)[0] for split, path in evaluated_paths(folder, cell_end).items()}


def _checked(path: Path, cell_end: Mapping[str, Any]) -> tuple[HeldOut, np.ndarray]:
    return load_held_out(path, cell_end.get("digests", {}).get(path.name))


def damaged(folder: Path, cells: Mapping[CellKey, LedgerRecord]) -> dict[CellKey, str]:
    """The finished cells with a file that is missing or damaged, and what is wrong with the first."""
    found = {}
    for key, record in cells.items():
        paths = [held_out_path(folder, record)] if "held_out" in record else []  # others have diverged
        try:
            for path in (*paths, *evaluated_paths(folder, record).values()):
                if (digest := record.get("digests", {}).get(path.name)) is None:
                    load_held_out(path)
                else:
                    _contents(path, digest)  # what has the right digest can be read
        except SweepError as error:
            found[key] = str(error)
    return found


def count_unchecked(cells: Iterable[LedgerRecord]) -> int:
    """How many finished cells have logits without a digest: damage to them can't be seen."""
    return sum("held_out" in record and not record.get("digests") for record in cells)


def cell_name(key: CellKey) -> str:
    """A cell in words."""
    return f"configuration {key[0]}, seed {key[1]}, fold {key[2]}"


def warn_unreadable(folder: Path, wrong: Mapping[CellKey, str]) -> None:
    """Name the cells that are left out of what is computed from their logits, and how these are made again."""
    if not wrong:
        return
    first = [f"{cell_name(key)}: {problem}" for key, problem in list(wrong.items())[:NAMED]]
    more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
    warnings.warn(
        f"{'; '.join(first)}{more}; left out of everything that is computed from logits; make them again by: "
        f"leebert-tune resume {folder} --repair",
        stacklevel=1,
    )
