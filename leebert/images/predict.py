"""Predict images from a folder, a Parquet file, one image, or a list of paths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from leebert.data.readers import Columns, file_lines, lines_with_text, parquet_batches
from leebert.errors import DataError
from leebert.images.arrays import decode
from leebert.images.sources import image_bytes
from leebert.images.tasks import ENDINGS

#: Keys of a prediction, in this order; `file` is the image's name, or its row number in a Parquet file.
COLUMNS = ("row", "file", "label", "probability", "exit_layer")


class Image(NamedTuple):
    """An encoded image.

    Attributes:
        number: Its position, from 0.
        name: Its file name, or its row number in a Parquet file.
        file: The encoded image.
        place: Where it is, for messages.
    """

    number: int
    name: str
    file: bytes
    place: str


def read_folder_or_file(path: Path, column: str = "img") -> Iterator[Image]:
    """Read images one after another.

    Args:
        path: A folder (read in the order of file names), a Parquet file, an image, or a text file with one path per line.
        column: The column of a Parquet file.

    Yields:
        The images, numbered from 0.

    Raises:
        DataError: A file is missing or is no image.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in ENDINGS)
        if not files:
            raise DataError(f"{path}: no image file in this folder; suffixes are {', '.join(ENDINGS)}")
        yield from (Image(i, p.name, _read_file(p, str(p)), str(p)) for i, p in enumerate(files))
    elif not path.is_file():
        raise DataError(f"{path}: no such file or folder")
    elif suffix == ".parquet":
        yield from _read_parquet(path, column)
    elif suffix in ENDINGS:
        yield Image(0, path.name, _read_file(path, str(path)), str(path))
    elif suffix == ".txt":
        yield from read_list(file_lines(path), str(path))
    else:
        raise DataError(
            f"{path}: the model takes images: a folder, {', '.join(ENDINGS)}, .parquet, or a .txt with one path per line"
        )


def read_list(lines: Iterable[bytes | str], name: str) -> Iterator[Image]:
    """Read the images of a list with one path per line.

    Args:
        lines: The lines.
        name: The list's name, for messages.

    Yields:
        The images, numbered from 0.

    Raises:
        DataError: A file is missing or is no image.
    """
    for number, (line, path) in enumerate(lines_with_text(lines, name)):
        place = f"{name}, line {line}"
        yield Image(number, path, _read_file(Path(path), place), f"{place}: {path}")


def _read_file(path: Path, place: str) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # a null character in a path is a ValueError
        raise DataError(f"{place}: {str(path)!r} can't be read: {getattr(error, 'strerror', None) or error}") from None


def _read_parquet(path: Path, column: str) -> Iterator[Image]:
    number = 0
    for _, (images,) in parquet_batches(path, Columns(((column,),), "it must hold encoded images")):
        for image in image_bytes(images, str(path), number):
            yield Image(number, str(number), image, f"{path}, row {number}")
            number += 1


def predict_images(model: Any, images: Sequence[Image], criterion: Any, runtime: Any) -> list[dict[str, Any]]:
    """Predict a batch of images by early-exit inference.

    Args:
        model: A saved model in evaluation mode.
        images: B encoded images.
        criterion: The exit criterion.
        runtime: Device and precision.

    Returns:
        B predictions with the keys :data:`COLUMNS`, in the order of the images.

    Raises:
        DataError: An image is damaged or of another size.
    """
    import torch

    from leebert.inference import infer

    pixels = np.stack([decode(image.file, model.config.image_size, image.place) for image in images])
    result = infer(model, {"images": torch.from_numpy(pixels)}, criterion, runtime)
    probability, label = torch.softmax(result.logits, -1).max(-1)
    predictions = zip(images, label.tolist(), probability.tolist(), result.layers.tolist(), strict=True)
    return [
        dict(zip(COLUMNS, (image.number, image.name, model.config.id2label[k], round(p, 6), layer), strict=True))
        for image, k, p, layer in predictions
    ]
