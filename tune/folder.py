"""A sweep's folder: its name, its files, who drives it now, and the request to stop it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leebert.errors import SweepError
from tune.ledger import Ledger

#: A driver that has not been heard of for so long is taken for dead.
BEAT_TIMEOUT = 30.0


def storage_root(option: str | None) -> Path:
    """Where sweeps lie: the option, else LEEBERT_STORAGE, else ./sweeps."""
    return Path(option or os.environ.get("LEEBERT_STORAGE") or "sweeps").expanduser().resolve()


def check_name(name: str) -> str:
    """A sweep's name as it is, if it can be a folder's; SweepError otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or ".." in name:
        raise SweepError(
            f"--name {name!r}: a sweep's name has letters, digits, '.', '_' and '-' only (at most 100, no '..'), "
            "and begins with a letter or digit"
        )
    return name


class SweepFolder:
    """The files of one sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.ledger = Ledger(path / "ledger")

    @classmethod
    def create(cls, storage: Path, name: str) -> SweepFolder:
        """A new, empty folder; refuses a name that is taken, and says how to go on with that sweep."""
        path = storage / check_name(name)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise SweepError(
                f"a sweep named {name!r} exists in {storage}; go on with it by: leebert-tune resume {name}"
                + ("" if storage == storage_root(None) else f" --storage {storage}")
            ) from None
        except OSError as error:
            raise SweepError(f"storage {storage} can't be written: {error.strerror or error}") from None
        return cls(path)

    @classmethod
    def find(cls, name: str, storage: str | None = None) -> SweepFolder:
        """An existing sweep by name in the storage, or by path."""
        as_path = Path(name)
        path = as_path if (as_path / "manifest.json").is_file() else storage_root(storage) / name
        if "/" not in name and not (path / "manifest.json").is_file():
            check_name(name)
        if not (path / "manifest.json").is_file():
            known = [folder.name for folder in cls.all(storage)]
            raise SweepError(
                f"no sweep {name!r} in {storage_root(storage)}" + (f"; there are: {', '.join(known)}" if known else "")
            )
        return cls(path.resolve())

    @classmethod
    def all(cls, storage: str | None = None) -> list[SweepFolder]:
        """All sweeps in a storage, by name."""
        return [cls(p.parent) for p in sorted(storage_root(storage).glob("*/manifest.json"))]

    @property
    def manifest(self) -> dict[str, Any]:
        """What the sweep is made of: see `tune.prepare`."""
        try:
            return json.loads((self.path / "manifest.json").read_text())
        except (OSError, ValueError) as error:
            raise SweepError(f"{self.path / 'manifest.json'} can't be read: {error}") from None

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        write_atomically(self.path / "manifest.json", json.dumps(manifest, indent=1))

    # The driver's beat, for other terminals.

    def beat(self, **what: Any) -> None:
        """Say that a driver is at work here."""
        told = {"pid": os.getpid(), "host": socket.gethostname(), "time": time.time(), **what}
        write_atomically(self.path / "driver.json", json.dumps(told))

    def driver(self) -> dict[str, Any] | None:
        """What the driver at work said last, or None where none is alive."""
        try:
            told = json.loads((self.path / "driver.json").read_text())
        except (OSError, ValueError):
            return None
        if told.get("gone") or time.time() - told["time"] > BEAT_TIMEOUT:
            return None
        if told["host"] == socket.gethostname() and not _alive(told["pid"]):
            return None
        return told

    def driver_gone(self) -> None:
        self.beat(gone=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the sweep while a driver works; SweepError where another does. The system drops it with the process."""
        with open(self.path / "driver.lock", "w") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise SweepError(f"sweep {self.name} is being driven by another process") from None
            yield

    # The request to stop.

    def request_stop(self) -> None:
        (self.path / "STOP").write_text(f"{time.time()}\n")

    def stop_requested(self) -> bool:
        return (self.path / "STOP").exists()

    def clear_stop(self) -> None:
        (self.path / "STOP").unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
