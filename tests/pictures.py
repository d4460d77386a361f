"""Small generated pictures in the layout of CIFAR on the hub: each class has a colour of its own, under noise."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = 10


def pixels(n: int, size: int = 32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(n, size, size, 3) uint8 and labels (n,), the classes in turn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    corners = [(r, g, b) for r in (60, 190) for g in (60, 190) for b in (60, 190)]
    colours = np.array([*corners, (125, 125, 125), (60, 125, 190)])
    noise = rng.integers(-40, 40, (n, size, size, 3))
    return (colours[labels][:, None, None] + noise).astype(np.uint8), labels


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def write_parquet(path: Path, n: int = 60, seed: int = 0, size: int = 32, **columns: object) -> Path:
    """A split as the hub has it; `columns` replace or add some, None leaves one out."""
    images, labels = pixels(n, size, seed)
    found: dict[str, object] = {
        "img": [{"bytes": png(image), "path": f"{i}.png"} for i, image in enumerate(images)],
        "label": labels.tolist(),
    }
    kept = {name: column for name, column in {**found, **columns}.items() if column is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(kept), path)
    return path


def write_cifar(folder: Path, train: int = 80, test: int = 20) -> Path:
    """A folder with both splits."""
    write_parquet(folder / "train.parquet", train)
    write_parquet(folder / "test.parquet", test, seed=1)
    return folder
