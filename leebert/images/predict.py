"""Images in, answers out: a folder, a Parquet file, one image, or a list of paths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from leebert.data.readers import Columns, file_lines, lines_with_text, parquet_batches
from leebert.errors import DataError
from leebert.images.arrays import decode
from leebert.images.sources import image_bytes
from leebert.images.tasks import ENDINGS

#: What an answer has, in this order; `file` is the image's name, or its row in a Parquet file.
COLUMNS = ("row", "file", "label", "probability", "exit_layer")


class Image(NamedTuple):
    """An encoded image. number: its row, from 0. name: its file, or its row in a Parquet file. place: for messages."""

    number: int
    name: str
    file: bytes
    place: str


def read_folder_or_file(path: Path, column: str = "img") -> Iterator[Image]:
    """A folder's images by name, those of a Parquet file's column, one image, or those of a list of paths."""
    suffix = path.suffix.lower()
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in ENDINGS)
        if not files:
            raise DataError(f"{path}: holds no file that ends in {', '.join(ENDINGS)}")
        yield from (Image(i, p.name, _read(p, str(p)), str(p)) for i, p in enumerate(files))
    elif not path.is_file():
        raise DataError(f"{path}: no such file or folder")
    elif suffix == ".parquet":
        yield from _read_parquet(path, column)
    elif suffix in ENDINGS:
        yield Image(0, path.name, _read(path, str(path)), str(path))
    elif suffix == ".txt":
        yield from read_list(file_lines(path), str(path))
    else:
        raise DataError(
            f"{path}: the model takes images: a folder, {', '.join(ENDINGS)}, .parquet, or a .txt with a path in each line"
        )


def read_list(lines: Iterable[bytes | str], name: str) -> Iterator[Image]:
    """The images of a list of paths, one in each line."""
    for number, (line, path) in enumerate(lines_with_text(lines, name)):
        place = f"{name}, line {line}"
        yield Image(number, path, _read(Path(path), place), f"{place}: {path}")


def _read(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # a null character in a path is a ValueError
        raise DataError(f"{where}: {str(path)!r} can't be read: {getattr(error, 'strerror', None) or error}") from None


def _read_parquet(path: Path, column: str) -> Iterator[Image]:
    number = 0
    for _, (images,) in parquet_batches(path, Columns(((column,),), "the model takes encoded images in it")):
        for image in image_bytes(images, str(path), number):
            yield Image(number, str(number), image, f"{path}, row {number}")
            number += 1


def image_answers(
    model: Any, images: Iterable[Image], criterion: Any, runtime: Any, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Number, name, label, probability and exit layer of each image, in order, by inference that stops at the exit."""
    import torch

    from leebert.inference import infer

    images = iter(images)
    while chunk := list(islice(images, batch_size)):
        pixels = np.stack([decode(image.file, model.config.image_size, image.place) for image in chunk])
        answer = infer(model, {"images": torch.from_numpy(pixels)}, criterion, runtime)
        probability, label = torch.softmax(answer.logits, -1).max(-1)
        found = zip(chunk, label.tolist(), probability.tolist(), answer.layers.tolist(), strict=True)
        for image, k, p, layer in found:
            values = (image.number, image.name, model.config.id2label[k], round(p, 6), layer)
            yield dict(zip(COLUMNS, values, strict=True))
