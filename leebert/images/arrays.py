"""Decode images once, into an Arrow file that all processes map into memory."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from leebert.data import arrow
from leebert.errors import CacheError, DataError
from leebert.images.sources import ImageExamples

if TYPE_CHECKING:
    import torch


def decode(file: bytes, size: int, place: str) -> np.ndarray:
    """Decode an image.

    Args:
        file: The encoded image.
        size: The expected width and height in pixels.
        place: Where the image is, for messages.

    Returns:
        (size, size, 3) uint8: red, green, blue.

    Raises:
        DataError: The image is damaged or of another size.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file)) as image:
            if image.size != (size, size):
                raise DataError(
                    f"{place}: {image.width} × {image.height} pixels, but the network takes {size} × {size}; resize it"
                )
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{place}: not a readable image: {error}; replace or remove it") from None


def decode_all(examples: ImageExamples, size: int, path: str | Path) -> ImageRows:
    """Decode all images into an Arrow IPC file, and open it.

    The columns are image, size·size·3 uint8; label int64 if the images are labelled; row_id int64.

    Args:
        examples: N images.
        size: Their width and height in pixels.
        path: The file to write.

    Raises:
        DataError: An image is damaged or of another size, or the file can't be written.
    """
    pixels = np.empty((len(examples), size, size, 3), np.uint8)
    for i, (file, row) in enumerate(zip(examples.files, examples.ids, strict=True)):
        pixels[i] = decode(file, size, f"{examples.source}, row {row}")
    columns: dict[str, Any] = {
        "image": pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), size * size * 3)
    }
    if examples.labels is not None:
        columns["label"] = pa.array(examples.labels, pa.int64())
    columns["row_id"] = pa.array(examples.ids, pa.int64())
    arrow.write(columns, {"size": size, "fingerprint": pixel_fingerprint(examples, size)}, Path(path))
    return ImageRows.open(path)


def pixel_fingerprint(examples: ImageExamples, size: int) -> str:
    """Return the sha256 (hex) of everything that a pixel file depends on: images, labels, ids, size, decoder version."""
    from PIL import __version__ as decoder

    digest = hashlib.sha256(f"{arrow.LAYOUT}/{size}/{decoder}/{examples.fingerprint()}".encode())
    digest.update(examples.ids.astype("<i8").tobytes())
    return digest.hexdigest()


def cached(examples: ImageExamples, size: int, folder: str | Path) -> ImageRows:
    """Open the pixel file of images in a cache folder; decode at the first call.

    A damaged file, or one of other images, is rebuilt with a warning (:func:`leebert.data.arrow.load_or_build`).

    Args:
        examples: N images.
        size: Their width and height in pixels.
        folder: The cache folder.

    Raises:
        DataError: As :func:`decode_all`.
    """
    key = pixel_fingerprint(examples, size)
    path = Path(folder) / f"{key}.arrow"
    mismatch = "the pixels of other images"
    return arrow.load_or_build(path, key, mismatch, ImageRows.open, lambda: decode_all(examples, size, path))


@dataclasses.dataclass(frozen=True, eq=False)
class ImageRows:
    """N decoded images, mapped from a file; pickled as the file's path.

    Attributes:
        path: The file.
        images: (N, S, S, 3) uint8.
        labels: (N,) int64; None for unlabelled images.
        row_ids: (N,) int64 row numbers in the source.
        lengths: (N,) ones, since all images cost the same.
        fingerprint: The digest of :func:`pixel_fingerprint`.
    """

    path: str
    images: np.ndarray
    labels: np.ndarray | None
    row_ids: np.ndarray
    lengths: np.ndarray
    fingerprint: str

    @classmethod
    def open(cls, path: str | Path) -> ImageRows:
        """Map a pixel file into memory. Raises CacheError if it is missing, damaged or of another layout."""
        if not Path(path).is_file():
            raise CacheError(f"{path}: no such pixel file; make it with `cached` or `decode_all`")
        path = Path(path).resolve()
        try:
            batch, meta = arrow.open_mapped(path)
            size = int(meta["size"])
            return cls(
                path=str(path),
                images=arrow.flat(batch["image"]).reshape(-1, size, size, 3),
                labels=batch["label"].to_numpy(zero_copy_only=True) if "label" in batch.schema.names else None,
                row_ids=batch["row_id"].to_numpy(zero_copy_only=True),
                lengths=np.ones(batch.num_rows, np.int32),
                fingerprint=meta["fingerprint"],
            )
        except (pa.ArrowException, OSError, ValueError, KeyError, AttributeError) as error:
            raise CacheError(f"{path}: the pixel file is damaged ({error})") from None

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def truncated(self) -> int:
        """Number of truncated samples: 0, since images are never truncated."""
        return 0

    def __reduce__(self) -> tuple[Callable[[str], ImageRows], tuple[str]]:
        return ImageRows.open, (self.path,)

    def collate(self, indices: Any) -> dict[str, torch.Tensor]:
        """Make a batch of the samples at positions (B,): images (B, S, S, 3) uint8, and labels (B,) int64 if labelled."""
        import torch

        index = np.asarray(indices, dtype=np.int64)
        batch = {"images": torch.from_numpy(self.images[index])}
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[index])
        return batch
