"""Atomic writing: readers, also after a crash, get the old file or the new one, never a part."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leebert.errors import ConfigError


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError if it is invalid or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None


def check_writable(folder: Path, option: str) -> None:
    """Check, before long work starts, that its output folder can be written. Creates nothing.

    Args:
        folder: The folder; it need not exist.
        option: The option that sets it, for messages.

    Raises:
        ConfigError: The folder can't be written.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ConfigError(
            f"{option} {folder}: can't be written to ({error.strerror}); give a writable folder"
        ) from None


def check_file_writable(file: Path, option: str) -> None:
    """Refuse an output file that cannot be written.

    Args:
        file: The file.
        option: The option that names it, for messages.

    Raises:
        ConfigError: It is a folder, or its folder cannot be written to.
    """
    if file.is_dir():
        raise ConfigError(f"{option} {file}: is a folder; give the name of a file")
    check_writable(file.parent, option)


@contextlib.contextmanager
def replaced(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Replace a file atomically.

    Args:
        path: The file. After an error it is unchanged.
        sync: Whether the new file survives a loss of power; False is faster, for files that can be rebuilt.

    Yields:
        A temporary path in the same folder to write to. Its name has a random token, because two hosts that share the folder
        can have equal process ids.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        if sync:
            with temporary.open("rb+") as f:
                os.fsync(f.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if sync:
        fsync_folder(path.parent)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file atomically; it survives a loss of power."""
    write_together({path: text})


def write_together(texts: dict[Path, str]) -> None:
    """Write several text files atomically; all are on the disk before the first replaces its predecessor."""
    with contextlib.ExitStack() as stack:
        # The last context entered is the first to exit, so the files are replaced in their order.
        for temporary, text in [(stack.enter_context(replaced(path)), texts[path]) for path in reversed(texts)]:
            with temporary.open("w", encoding="utf-8") as f:
                f.write(text)
                f.flush()
                os.fsync(f.fileno())


def fsync_folder(folder: Path) -> None:
    """Sync a folder, so that new file names in it survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
