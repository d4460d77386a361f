"""Write an exported folder: graphs, tokenizer, manifest and card, all or nothing."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from leebert.errors import ConfigError, StorageError
from leebert.export.segments import Graph
from leebert.exported.manifest import TOKENIZER, Manifest, Segment, is_exported, write_manifest
from leebert.exported.tokenizing import tokenizer_text
from leebert.files import check_writable, fsync_folder, write_atomically


def check_out(out: Path) -> None:
    """Refuse, before long work starts, a folder that must not or cannot be written.

    Args:
        out: The folder of the export; an earlier export in it is replaced at the end.

    Raises:
        ConfigError: It is a file, a folder with other contents, or can't be written.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ConfigError(f"--out {out}: is not a folder; give another one")
    if out.is_dir() and any(out.iterdir()) and not is_exported(out):
        raise ConfigError(f"--out {out}: the folder holds other files than an exported model; give a new folder")
    check_writable(out.parent, "--out")


@contextlib.contextmanager
def replaced_folder(out: Path) -> Iterator[Path]:
    """Replace a folder at once; after an error it is unchanged.

    Args:
        out: The folder.

    Yields:
        A new folder beside it, to be written.

    Raises:
        StorageError: A file can't be written.
    """
    token = secrets.token_hex(4)
    fresh, former = (out.with_name(f".{out.name}.{token}.{end}") for end in ("tmp", "old"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        fresh.mkdir()
        yield fresh
        for file in fresh.iterdir():
            with file.open("rb") as f:
                os.fsync(f.fileno())
        fsync_folder(fresh)
        if out.exists():
            out.rename(former)
        fresh.rename(out)
        fsync_folder(out.parent)
    except OSError as error:
        raise StorageError(f"--out {out}: can't be written ({error.strerror or error}); nothing was changed") from None
    finally:
        if former.exists() and not out.exists():  # after Ctrl-C as well
            former.rename(out)
        for folder in (fresh, former):
            shutil.rmtree(folder, ignore_errors=True)


def write_export(folder: Path, graphs: Sequence[Graph], tokenizer: Any, manifest: Manifest, card: str = "") -> Manifest:
    """Write the files of an export into an empty folder.

    Args:
        folder: The folder.
        graphs: The segments.
        tokenizer: The model's tokenizer; None for images.
        manifest: The manifest; its `segments` and `files` are those of the graphs.
        card: The text of README.md; empty: none.

    Returns:
        The manifest as written.
    """
    for number, graph in enumerate(graphs, start=1):
        (folder / f"segment-{number}.onnx").write_bytes(graph.model.SerializeToString())
    if tokenizer is not None:
        text = tokenizer_text(tokenizer.backend_tokenizer, manifest.max_length, tokenizer.truncation_side)
        write_atomically(folder / TOKENIZER, text)
    if card:
        write_atomically(folder / "README.md", card)
    return write_manifest(folder, manifest)


def segments_of(graphs: Sequence[Graph]) -> tuple[Segment, ...]:
    """Describe graphs in the manifest.

    Args:
        graphs: The segments, in order.
    """
    return tuple(
        Segment(
            file=f"segment-{number}.onnx", layers=(graph.first, graph.last), exit_layer=graph.last,
            inputs=graph.inputs, outputs=graph.outputs,
        )
        for number, graph in enumerate(graphs, start=1)
    )  # fmt: skip
