"""Images in, answers out: a folder, a Parquet file, one image, or a list of paths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from leebert.errors import DataError
from leebert.images.arrays import decode
from leebert.images.sources import image_bytes

#: Endings of the files that are taken from a folder.
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")

#: What an answer has, in this order; `file` is the image's name, or its row in a Parquet file.
COLUMNS = ("file", "label", "probability", "exit_layer")


def read_folder_or_file(path: Path, column: str = "img") -> Iterator[tuple[str, bytes]]:
    """(name, encoded image) of a folder's images by name, of a Parquet file's column, of an image, or of a list of paths."""
    suffix = path.suffix.lower()
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in ENDINGS)
        if not files:
            raise DataError(f"{path}: holds no file that ends in {', '.join(ENDINGS)}")
        yield from ((p.name, _read(p, str(p))) for p in files)
    elif not path.is_file():
        raise DataError(f"{path}: no such file or folder")
    elif suffix == ".parquet":
        yield from _read_parquet(path, column)
    elif suffix in ENDINGS:
        yield path.name, _read(path, str(path))
    elif suffix == ".txt":
        with open(path, encoding="utf-8-sig") as lines:
            yield from read_list(lines, str(path))
    else:
        raise DataError(
            f"{path}: the model takes images: a folder, {', '.join(ENDINGS)}, .parquet, or a .txt with a path in each line"
        )


def read_list(lines: Iterable[str], name: str) -> Iterator[tuple[str, bytes]]:
    """(path, encoded image) of a list of paths, one in each line."""
    try:
        for number, line in enumerate(lines, start=1):
            if path := line.strip():
                yield path, _read(Path(path), f"{name}, line {number}")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 text ({error}); give the paths of images, one in each line") from None


def _read(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # a null character in a path is a ValueError
        raise DataError(f"{where}: {str(path)!r} can't be read: {getattr(error, 'strerror', None) or error}") from None


def _read_parquet(path: Path, column: str) -> Iterator[tuple[str, bytes]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if column not in names:
            raise DataError(f"{path}: no column {column!r}; there are: {', '.join(names)}")
        for batch in file.iter_batches(1024, columns=[column]):
            for image in image_bytes(batch[column], str(path), number):
                yield str(number), image
                number += 1
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from None


def image_answers(
    model: Any, images: Iterable[tuple[str, bytes]], strategy: Any, runtime: Any, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Name, label, probability and exit layer of each image, in order, by inference that stops at the exit."""
    import torch

    from leebert.inference import infer

    images = iter(images)
    while chunk := list(islice(images, batch_size)):
        pixels = np.stack([decode(file, model.config.image_size, name) for name, file in chunk])
        answer = infer(model, {"images": torch.from_numpy(pixels)}, strategy, runtime)
        probability, label = torch.softmax(answer.logits, -1).max(-1)
        found = zip(chunk, label.tolist(), probability.tolist(), answer.layers.tolist(), strict=True)
        for (name, _), k, p, layer in found:
            values = (name, model.config.id2label[k], round(p, 6), layer)
            yield dict(zip(COLUMNS, values, strict=True))
