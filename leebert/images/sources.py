"""Read one split of an image task from Parquet files in the hub's layout, or from the hub; images stay encoded."""

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
    """N encoded images with their labels.

    Attributes:
        files: N encoded images, such as JPEG or PNG.
        labels: (N,) int64 class ids; None for unlabelled images.
        ids: (N,) int64 row numbers in the split, from 0.
        source: The file or hub data set, for messages.
        label_names: Class names in the order of their ids.
        skipped: Number of skipped rows; always 0.
    """

    files: list[bytes]
    labels: np.ndarray | None
    ids: np.ndarray
    source: str
    label_names: tuple[str, ...] = ()
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Any) -> ImageExamples:
        """Select the images at these positions (n,), in this order, with their ids."""
        index = np.asarray(indices, dtype=np.int64)
        return dataclasses.replace(
            self,
            files=[self.files[i] for i in index.tolist()],
            labels=None if self.labels is None else self.labels[index],
            ids=self.ids[index],
        )

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of images, labels and label names; it does not depend on the source."""
        digest = hashlib.sha256(repr((len(self), self.label_names)).encode())
        digest.update(np.fromiter(map(len, self.files), "<i8", len(self.files)).tobytes())
        for file in self.files:
            digest.update(file)
        digest.update(b"unlabelled" if self.labels is None else self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


def read_images(
    task: ImageTask, split: str, source: str | Path | None = None, *, labelled: bool = True
) -> ImageExamples:
    """Read one split of an image task.

    Args:
        task: The task.
        split: A split of the task, such as `train`.
        source: A folder with `train.parquet` or, as on the hub, `train-00000-of-00001.parquet`, also inside a folder named
            after the task; None: the hub.
        labelled: Whether to read labels.

    Raises:
        DataError: The split is missing, unreadable or malformed.
    """
    _check_split(task, split)
    if source is None:
        place, table, names = _from_hub(task, split)
    else:
        place, table, names = _from_files(task, split, Path(source).expanduser())
    columns = (task.image_column, task.label_column) if labelled else (task.image_column,)
    Columns(tuple((name,) for name in columns), f"use a data set in the layout of {task.hub}").find(
        table.column_names, place
    )
    files = image_bytes(table[task.image_column], place)
    if not files:
        raise DataError(f"{place}: no rows; check the file, or give another one")
    labels = _labels(task, split, table[task.label_column], names, place) if labelled else None
    return ImageExamples(files, labels, np.arange(len(files)), place, task.label_names)


def check_files(task: ImageTask, split: str, source: str | Path | None) -> None:
    """Check that the files of a split exist, without reading them; a split on the hub is not checked.

    Args:
        task: The task.
        split: A split of the task.
        source: As in :func:`read_images`.

    Raises:
        DataError: The split or its files are missing.
    """
    _check_split(task, split)
    if source is not None:
        _files(task, split, Path(source).expanduser())


def _check_split(task: ImageTask, split: str) -> None:
    if split not in task.splits:
        raise DataError(
            f"task {task.name} has no split {split!r}{nearest(split, task.splits)}; it has {', '.join(task.splits)}"
        )


def _from_files(task: ImageTask, split: str, root: Path) -> tuple[str, Any, Sequence[str] | None]:
    """Return the name in messages, the Arrow table, and the label names if the file has them."""
    import pyarrow as pa

    folder, paths = _files(task, split, root)
    tables = [parquet_table(path) for path in paths]
    try:
        table = pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise DataError(
            f"{listed([str(p) for p in paths])}: the files of one split differ in columns: {error}"
        ) from None
    place = str(paths[0]) if len(paths) == 1 else str(folder / f"{split}-*-of-*.parquet")
    return place, table, _names(tables[0].schema, task)


def _files(task: ImageTask, split: str, root: Path) -> tuple[Path, list[Path]]:
    """Return the folder with the files of a split, and the files."""
    if not root.is_dir():
        raise DataError(f"--data-dir {root}: no such folder; give the folder that holds {split}.parquet")
    inner = in_any_case(root / task.name)
    folder = inner if inner.is_dir() else root
    shards = f"{split}-*-of-*.parquet"
    paths = [p for p in (in_any_case(folder / f"{split}.parquet"),) if p.is_file()]
    paths = paths or _shards(folder, "*", split) or _shards(folder, "*/*", split)
    if not paths:
        content = listed(sorted(p.name for p in folder.iterdir()))
        raise DataError(
            f"{folder}: no {split}.parquet and no {shards} (split {split!r} of task {task.name}); the folder holds "
            f"{content}; give a copy of {task.hub}"
        )
    return folder, paths


def _shards(folder: Path, pattern: str, split: str) -> list[Path]:
    """Find the files of a split by the hub's names, ignoring case."""
    name = re.compile(rf"{re.escape(split)}-.*-of-.*\.parquet", re.IGNORECASE)
    return sorted(path for path in folder.glob(pattern) if name.fullmatch(path.name))


def _names(schema: Any, task: ImageTask) -> Sequence[str] | None:
    """Read the label names that the `datasets` library stores in a Parquet file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return list(features[task.label_column]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def _from_hub(task: ImageTask, split: str) -> tuple[str, Any, Sequence[str] | None]:
    place = f"hub:{task.hub} split {split!r}"
    data = load_hub(task.hub, split, place, f"with --data-dir FOLDER (a copy of {task.hub}, holding its Parquet files)")
    names = getattr(data.features.get(task.label_column), "names", None)
    return place, data.with_format("arrow")[:], names  # Arrow holds the images as they are stored


def image_bytes(column: Any, place: str, first: int = 0) -> list[bytes]:
    """Return the encoded images of an Arrow column.

    Args:
        column: Bytes, or structs with the field `bytes`, as on the hub.
        place: The file, for messages.
        first: The row number of the column's first value.

    Raises:
        DataError: The column has another type, or an image is missing.
    """
    import pyarrow as pa

    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        values = [row and row["bytes"] for row in column.to_pylist()]
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        values = column.to_pylist()
    else:
        raise DataError(f"{place}: the image column holds {kind}; expected encoded images (bytes)")
    empty = next((i for i, value in enumerate(values) if not value), None)
    if empty is not None:
        raise DataError(
            f"{place}, row {first + empty}: no image; the file must hold the image itself, not only its path"
        )
    return values


def _labels(task: ImageTask, split: str, column: Any, names: Sequence[str] | None, place: str) -> np.ndarray:
    """Map labels to class ids, (N,) int64. Raises DataError."""
    k = len(task.label_names)
    if names is not None:
        expected = {name: i for i, name in enumerate(task.label_names)}
        moved = next((n for i, n in enumerate(names) if expected.get(n, i) != i), None)
        if len(names) != k or moved:
            difference = f"{moved!r} has another id" if moved else f"it has {len(names)} labels"
            raise DataError(
                f"{place}, column {task.label_column!r}: {difference} than in task {task.name}; use the task's data set"
            )
    ids, collected = LabelIds(task.label_names), []
    for row, value in enumerate(column.to_pylist()):
        if (label := ids.of(value)) is None:
            raise DataError(
                f"{place}, row {row}, column {task.label_column!r}: {short(value)} is not a label of task {task.name}; "
                f"labels are 0 to {k - 1}, or their names{nearest(value, task.label_names) if isinstance(value, str) else ''}"
            )
        collected.append(label)
    labels = np.array(collected, np.int64)
    if split == "train" and (missing := sorted(set(range(k)) - set(labels.tolist()))):
        shown = listed([task.label_names[i] for i in missing])
        raise DataError(f"{place}: no row has the label {shown} of task {task.name}")
    return labels
