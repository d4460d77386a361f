"""Reading one split of an image task: Parquet files in the hub's layout, or the hub. Files stay encoded until they count."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leebert.data.labels import LabelIds
from leebert.data.readers import Columns, in_any_case, parquet_table, short
from leebert.data.sources import listed, load_hub
from leebert.errors import DataError, nearest
from leebert.images.tasks import ImageTask


@dataclasses.dataclass(frozen=True, eq=False)
class ImageExamples:
    """Encoded images with their labels.

    files: N images as they were stored, JPEG or PNG, say. labels: (N,) int64 ids, None when unlabelled. ids: (N,) int64,
    the row's number in its split, from 0.
    """

    files: list[bytes]
    labels: np.ndarray | None
    ids: np.ndarray
    source: str
    label_names: tuple[str, ...] = ()
    skipped: int = 0  # rows of the file that were left out: none

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Any) -> ImageExamples:
        """The rows at these positions, in this order, with their ids."""
        index = np.asarray(indices, dtype=np.int64)
        return dataclasses.replace(
            self,
            files=[self.files[i] for i in index.tolist()],
            labels=None if self.labels is None else self.labels[index],
            ids=self.ids[index],
        )

    def fingerprint(self) -> str:
        """sha256 (hex) of files, labels and label names in their order: the content, wherever it was read from."""
        digest = hashlib.sha256(repr((len(self), self.label_names)).encode())
        digest.update(np.fromiter(map(len, self.files), "<i8", len(self.files)).tobytes())
        for file in self.files:
            digest.update(file)
        digest.update(b"unlabelled" if self.labels is None else self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


def read_images(
    task: ImageTask, split: str, source: str | Path | None = None, *, labelled: bool = True
) -> ImageExamples:
    """The rows of one split.

    source: a folder with `train.parquet`, or with `train-00000-of-00001.parquet` as on the hub, also within a folder of
    the task's name; None is the hub. labelled: False reads the images alone. Raises DataError.
    """
    if split not in task.splits:
        raise DataError(
            f"task {task.name} has no split {split!r}{nearest(split, task.splits)}; it has {', '.join(task.splits)}"
        )
    if source is None:
        where, table, names = _from_hub(task, split)
    else:
        where, table, names = _from_files(task, split, Path(source).expanduser())
    columns = (task.image_column, task.label_column) if labelled else (task.image_column,)
    Columns(tuple((name,) for name in columns), f"point to a data set in the layout of {task.hub}").find(
        table.column_names, where
    )
    files = image_bytes(table[task.image_column], where)
    if not files:
        raise DataError(f"{where}: no rows; check the file, or point to another one")
    labels = _labels(task, split, table[task.label_column], names, where) if labelled else None
    return ImageExamples(files, labels, np.arange(len(files)), where, task.label_names)


def _from_files(task: ImageTask, split: str, root: Path) -> tuple[str, Any, Sequence[str] | None]:
    """(what it is called in errors, the Arrow table, the labels' names where the file knows them)."""
    import pyarrow as pa

    if not root.is_dir():
        raise DataError(f"--data-dir {root}: there is no such folder; point to the one that holds {split}.parquet")
    inner = in_any_case(root / task.name)
    folder = inner if inner.is_dir() else root
    shards = f"{split}-*-of-*.parquet"
    paths = [p for p in (in_any_case(folder / f"{split}.parquet"),) if p.is_file()]
    paths = paths or _shards(folder, "*", split) or _shards(folder, "*/*", split)
    if not paths:
        there = listed(sorted(p.name for p in folder.iterdir()))
        raise DataError(
            f"{folder}: no {split}.parquet and no {shards}, the split {split!r} of task {task.name}; the folder holds "
            f"{there}; point to a copy of {task.hub}"
        )
    tables = [parquet_table(path) for path in paths]
    try:
        table = pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise DataError(f"{listed([str(p) for p in paths])}: parts of one split differ in columns: {error}") from None
    return str(paths[0]) if len(paths) == 1 else str(folder / shards), table, _names(tables[0].schema, task)


def _shards(folder: Path, pattern: str, split: str) -> list[Path]:
    """The parts of a split as the hub names them, in upper or lower case."""
    name = re.compile(rf"{re.escape(split)}-.*-of-.*\.parquet", re.IGNORECASE)
    return sorted(path for path in folder.glob(pattern) if name.fullmatch(path.name))


def _names(schema: Any, task: ImageTask) -> Sequence[str] | None:
    """The labels' names that the `datasets` library leaves in a Parquet file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return list(features[task.label_column]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def _from_hub(task: ImageTask, split: str) -> tuple[str, Any, Sequence[str] | None]:
    where = f"hub:{task.hub} split {split!r}"
    data = load_hub(task.hub, split, where, f"with --data-dir FOLDER (a copy of {task.hub}, holding its Parquet files)")
    names = getattr(data.features.get(task.label_column), "names", None)
    return where, data.with_format("arrow")[:], names  # Arrow holds the images as they are stored


def image_bytes(column: Any, where: str, first: int = 0) -> list[bytes]:
    """The files in an Arrow column: of bytes, or of structs with the field `bytes`, as the hub has them.

    first: the row of `where` that the column begins with.
    """
    import pyarrow as pa

    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        values = [row and row["bytes"] for row in column.to_pylist()]
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        values = column.to_pylist()
    else:
        raise DataError(f"{where}: the column of images holds {kind}; encoded images (bytes) are expected")
    empty = next((i for i, value in enumerate(values) if not value), None)
    if empty is not None:
        raise DataError(
            f"{where}, row {first + empty}: there is no image; its bytes must be in the file, not only its path"
        )
    return values


def _labels(task: ImageTask, split: str, column: Any, names: Sequence[str] | None, where: str) -> np.ndarray:
    """(N,) int64, each among the task's ids. Raises DataError."""
    k = len(task.label_names)
    if names is not None:
        known = {name: i for i, name in enumerate(task.label_names)}
        wrong = next((n for i, n in enumerate(names) if known.get(n, i) != i), None)
        if len(names) != k or wrong:
            said = f"{wrong!r} has another id" if wrong else f"it has {len(names)} labels"
            raise DataError(
                f"{where}, column {task.label_column!r}: {said} than in task {task.name}; it is another data set"
            )
    ids, found = LabelIds(task.label_names), []
    for row, value in enumerate(column.to_pylist()):
        if (label := ids.of(value)) is None:
            raise DataError(
                f"{where}, row {row}, column {task.label_column!r}: {short(value)} is no label of task {task.name}; "
                f"they are 0 to {k - 1}, or their names{nearest(value, task.label_names) if isinstance(value, str) else ''}"
            )
        found.append(label)
    labels = np.array(found, np.int64)
    if split == "train" and (missing := sorted(set(range(k)) - set(labels.tolist()))):
        shown = listed([task.label_names[i] for i in missing])
        raise DataError(f"{where}: no row is labelled {shown}, which task {task.name} has among its labels")
    return labels
