"""Pictures of runs in the files and under the names that MLflow's image charts read."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tune.tracking.server import is_refusal, redact

#: The folder of a run's pictures.
FOLDER = "images"


def picture_files(key: str, time_ms: int, digest: str) -> list[str]:
    """Return the names of a picture's two files, the whole and the thumbnail, as `mlflow.log_image` makes them.

    Equal pictures have equal names, so that one that is sent again replaces the first.

    Args:
        key: The picture's name in charts.
        time_ms: Its time in ms since 1970.
        digest: Digest of its contents, at least 32 hexadecimal digits.
    """
    uuid = "-".join(digest[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))
    name = f"{key}+step+0+timestamp+{time_ms}+{uuid}"
    return [f"{name}.png", f"{name}+compressed.webp"]


def put_picture(store: Any, artifact_uri: str, files: Sequence[str], draw: Callable[[], bytes]) -> str:
    """Write a picture to a run's files.

    MLflow's charts show the thumbnail at up to 600 pixels, so it is as large as the picture, unlike those of `log_image`.

    Args:
        store: MLflow's store.
        artifact_uri: The address of the run's files.
        files: The names of the whole and of the thumbnail.
        draw: Draws the picture as PNG.

    Returns:
        Why the server accepts no files; empty if it does. Any exception may be temporary.
    """
    from PIL import Image

    drawn = draw()
    small = io.BytesIO()
    Image.open(io.BytesIO(drawn)).save(small, format="webp", lossless=True)
    try:
        for name, data in zip(files, (drawn, small.getvalue()), strict=True):
            _put(store, artifact_uri, name, data)
    except Exception as error:
        if not is_refusal(error):
            raise
        return refusal_reason(error)
    return ""


def refusal_reason(error: Exception) -> str:
    """Return in a line why a server accepts no files; never empty."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _put(store: Any, artifact_uri: str, name: str, data: bytes) -> None:
    if artifact_uri.startswith("mlflow-artifacts:") and hasattr(store, "put_file"):
        store.put_file(artifact_uri, f"{FOLDER}/{name}", data)
        return
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        get_artifact_repository(artifact_uri).log_artifact(str(path), FOLDER)


def refusal_warning(uri: str, reason: str) -> str:
    """Return the warning about a server that accepts no files.

    Args:
        uri: MLflow's address.
        reason: What :func:`put_picture` returned.
    """
    return f"MLflow at {redact(uri)} accepts no pictures ({redact(reason)}); its runs are complete"


def pictures_of(store: Any, artifact_uri: str) -> set[str]:
    """Return the names of the files of a run's pictures.

    Args:
        store: MLflow's store.
        artifact_uri: The address of the run's files.
    """
    if artifact_uri.startswith("mlflow-artifacts:") and hasattr(store, "files_of"):
        return set(store.files_of(artifact_uri, FOLDER))
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return {file.path.rpartition("/")[2] for file in get_artifact_repository(artifact_uri).list_artifacts(FOLDER)}
