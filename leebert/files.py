"""Files: writing so that a reader, or whoever comes after a crash, finds the old or the new and never a part."""

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
    """What a JSON text holds. ValueError where it is none, also for one that is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None


def check_writable(folder: Path, option: str) -> None:
    """ConfigError, which names the option, if nothing could be written into a folder, which need not exist yet.

    To be asked before work is done whose outcome goes there. Nothing is left behind, not even the folder.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ConfigError(
            f"{option} {folder}: can't be written to ({error.strerror}); give a folder in which you may write"
        ) from None


def check_file_writable(file: Path, option: str) -> None:
    """As :func:`check_writable`, of a file that is to be written: no folder may have its name."""
    if file.is_dir():
        raise ConfigError(f"{option} {file}: is a folder; give the name of a file")
    check_writable(file.parent, option)


@contextlib.contextmanager
def replaced(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Write a file whole or not at all.

    Args:
        path: The file. After an error it is as it was before.
        sync: Whether the contents and the name survive a loss of power once this returns. Without it writing is
            quicker: for files that can be made again.

    Yields:
        A path in the same folder to write to. Its name holds a random token, since two hosts that share the folder may
        have processes of one number.
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
    """Readers see the old file or the new one, never a part; after a loss of power as well."""
    write_together({path: text})


def write_together(texts: dict[Path, str]) -> None:
    """Several files of one folder, each as by :func:`write_atomically`; all are on the disk before the first is replaced."""
    with contextlib.ExitStack() as stack:
        # The last one entered is the first to be replaced.
        for temporary, text in [(stack.enter_context(replaced(path)), texts[path]) for path in reversed(texts)]:
            with temporary.open("w", encoding="utf-8") as f:
                f.write(text)
                f.flush()
                os.fsync(f.fileno())


def fsync_folder(folder: Path) -> None:
    """Make new names in a folder last, too: without it a power loss may take a file whose contents were synced."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
