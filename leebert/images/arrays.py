"""Images are decoded once, into an Arrow file that every process maps into memory instead of copying it."""

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


def decode(file: bytes, size: int, where: str) -> np.ndarray:
    """An image as (size, size, 3) uint8, red, green and blue. Raises DataError where it is damaged or of another size."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file)) as image:
            if image.size != (size, size):
                raise DataError(
                    f"{where}: {image.width} × {image.height} pixels, but the network takes {size} × {size}; resize it"
                )
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: no image that can be read: {error}; replace or remove it") from None


def decode_all(examples: ImageExamples, size: int, path: str | Path) -> ImageRows:
    """Decode all rows into an Arrow IPC file, and open it.

    Columns: image, size·size·3 uint8; label int64 where there are labels; row_id int64. Raises DataError.
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
    """sha256 (hex) of all that the file of pixels depends on: files, labels and ids, the size, the decoder's version."""
    from PIL import __version__ as decoder

    digest = hashlib.sha256(f"{arrow.LAYOUT}/{size}/{decoder}/{examples.fingerprint()}".encode())
    digest.update(examples.ids.astype("<i8").tobytes())
    return digest.hexdigest()


def cached(examples: ImageExamples, size: int, folder: str | Path) -> ImageRows:
    """The decoded rows from `folder`, made at the first call.

    A file that is damaged, or holds other rows, is made again with a warning (:func:`leebert.data.arrow.kept_or_made`).
    """
    key = pixel_fingerprint(examples, size)
    path = Path(folder) / f"{key}.arrow"
    other = "the pixels of other images"
    return arrow.kept_or_made(path, key, other, ImageRows.open, lambda: decode_all(examples, size, path))


@dataclasses.dataclass(frozen=True, eq=False)
class ImageRows:
    """N decoded images, mapped from a file; pickles as the file's path.

    images: (N, S, S, 3) uint8. labels: (N,) int64, None when unlabelled. row_ids: (N,) int64. lengths: (N,) equal numbers.
    """

    path: str
    images: np.ndarray
    labels: np.ndarray | None
    row_ids: np.ndarray
    lengths: np.ndarray
    fingerprint: str

    @classmethod
    def open(cls, path: str | Path) -> ImageRows:
        """Map a file of pixels. Raises CacheError where it is missing, damaged or of another layout."""
        if not Path(path).is_file():
            raise CacheError(f"{path}: there is no such file of pixels; it is made by `cached` or `decode_all`")
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
            raise CacheError(f"{path}: the file of pixels is damaged ({error})") from None

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def truncated(self) -> int:
        """How many images were cut: none, as each has the network's size."""
        return 0

    def __reduce__(self) -> tuple[Callable[[str], ImageRows], tuple[str]]:
        return ImageRows.open, (self.path,)

    def collate(self, indices: Any) -> dict[str, torch.Tensor]:
        """Rows at these positions: images (B, S, S, 3) uint8, and labels (B,) int64 where there are any."""
        import torch

        index = np.asarray(indices, dtype=np.int64)
        batch = {"images": torch.from_numpy(self.images[index])}
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[index])
        return batch
