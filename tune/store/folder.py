"""A sweep's folder: its name, its files, its current driver, and the request to stop it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from leebert.config import parse
from leebert.errors import LeebertError, StorageError, SweepError
from leebert.files import fsync_folder, parse_json, write_atomically
from leebert.metrics import METRICS
from leebert.outside import refuse_missing
from tune.space import SweepSpec, config_id
from tune.store.lease import Lease, holder, watch
from tune.store.ledger import Ledger


def storage_root(option: str | None) -> Path:
    """Return the storage folder of sweeps: the option, else LEEBERT_STORAGE, else ./sweeps."""
    return Path(option or os.environ.get("LEEBERT_STORAGE") or "sweeps").expanduser().resolve()


def check_name(name: str) -> str:
    """Return a sweep's name if it can name a folder; SweepError otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or ".." in name:
        raise SweepError(
            f"--name {name!r}: a sweep's name has letters, digits, '.', '_' and '-' only (at most 100, no '..'), "
            "and begins with a letter or digit"
        )
    return name


#: The fixed names in a sweep's folder; the value is whether it is a folder.
LAYOUT = {
    "manifest.json": False, "space.yaml": False, "folds.json": False, "results.parquet": False, "STOP": False,
    "lease": True, "ledger": True, "ledger/driver": True, "checkpoints": True, "cells": True, "evaluated": True, "hung": True,
}  # fmt: skip

#: Keys of a manifest, with the types of their values.
MANIFEST: dict[str, type | tuple[type, ...]] = {
    "spec": dict, "rows": int, "metric": str, "data_fingerprint": str, "folds": dict, "backbone": dict, "versions": dict,
    "code": str, "runtime": dict, "test_train_ratio": (int, float, type(None)),
}  # fmt: skip


class Manifest(dict[str, Any]):
    """A sweep's manifest.json: its space, data, code and versions. A missing key, and an unknown metric when it is used, raises SweepError with the file's path."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.path = path
        for key, kind in MANIFEST.items():
            if key in values and (not isinstance(values[key], kind) or isinstance(values[key], bool)):
                raise SweepError(
                    f"{path}: {key}: {str(values[key])[:80]!r} can't be right: the manifest was damaged or edited"
                )

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if key == "metric":  # here, so that what needs no score reads the sweep without the metric's package
            self._check_metric(value)
        return value

    def _check_metric(self, name: str) -> None:
        if name not in METRICS:
            refuse_missing(self.get("parts"), str(self.path))
            raise SweepError(
                f"{self.path}: metric: {name[:80]!r} can't be right: {METRICS.unknown(name[:80])}; else the manifest was "
                "damaged or edited"
            )

    def __missing__(self, key: str) -> Any:
        raise SweepError(
            f"{self.path}: the key {key!r} is missing: the manifest was damaged or edited; restore it from a copy"
        )


class SweepFolder:
    """The files of one sweep."""

    _listed: dict[str, dict[str, Any]] | None = None

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self.name = name or path.name
        self.ledger = Ledger(path / "ledger", self._values_of)

    def _values_of(self, config: str) -> dict[str, Any] | None:
        """Return a configuration's values by its id, if the space lists all; for a ledger that has lost their record."""
        if self._listed is None:
            self._listed = {}
            with contextlib.suppress(LeebertError, ValueError):
                spec = SweepSpec.model_validate(self.manifest.get("spec") or {})
                if spec.size is not None:
                    self._listed = {config_id(values): values for values in spec.configurations()}
        return self._listed.get(config)

    @classmethod
    def refuse_taken(cls, storage: Path, name: str) -> None:
        """Refuse the name of an existing sweep.

        Args:
            storage: The folder of the sweeps.
            name: The name.

        Raises:
            SweepError: The name is taken; the message has the command that resumes that sweep.
        """
        if (storage / check_name(name)).exists():
            raise SweepError(
                f"a sweep named {name!r} exists in {storage}; resume it by: leebert-tune resume {name}"
                + ("" if storage == storage_root(None) else f" --storage {storage}")
            )

    @classmethod
    @contextlib.contextmanager
    def create(cls, storage: Path, name: str) -> Iterator[SweepFolder]:
        """Create a new sweep's folder; it is renamed to its final name, atomically, after the caller has filled it.

        Args:
            storage: The folder of the sweeps.
            name: Name of the sweep.

        Yields:
            The hidden folder to fill.

        Raises:
            SweepError: The name is taken or invalid.
            StorageError: The storage cannot be written.
        """
        cls.refuse_taken(storage, name)
        unfinished = storage / f".{name}.{secrets.token_hex(4)}"
        try:
            unfinished.mkdir(parents=True)
            yield cls(unfinished, name)
            fsync_folder(unfinished)
            unfinished.rename(storage / name)
            fsync_folder(storage)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                cls.refuse_taken(storage, name)  # created by another process meanwhile
            raise StorageError(f"storage {storage} can't be written: {error.strerror or error}") from None
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    @classmethod
    def find(cls, name: str, storage: str | None = None) -> SweepFolder:
        """Find an existing sweep.

        Args:
            name: Its name in the storage, or the path of its folder.
            storage: The folder of the sweeps; None: LEEBERT_STORAGE, else ./sweeps.

        Returns:
            The sweep's folder, with a checked layout.

        Raises:
            SweepError: There is no such sweep, or its folder is damaged.
        """
        as_path = Path(name)
        path = as_path if (as_path / "manifest.json").exists() else storage_root(storage) / name
        if "/" not in name and not (path / "manifest.json").exists():
            check_name(name)
        if not (path / "manifest.json").exists():
            names = [folder.name for folder in cls.all(storage)]
            raise SweepError(
                f"no sweep {name!r} in {storage_root(storage)}"
                + (f"; its sweeps: {', '.join(names)}" if names else "")
                + "; set another storage by --storage or LEEBERT_STORAGE"
            )
        folder = cls(path.resolve())
        folder.check_layout()
        return folder

    @classmethod
    def all(cls, storage: str | None = None) -> list[SweepFolder]:
        """Return all sweeps in a storage, by name."""
        return [cls(p.parent) for p in sorted(storage_root(storage).glob("[!.]*/manifest.json"))]

    def check_layout(self) -> None:
        """Raise SweepError for a file in a folder's place, or a folder in a file's."""
        for name, folder in LAYOUT.items():
            path = self.path / name
            if path.exists() and not path.is_symlink() and path.is_dir() != folder:
                is_, should = ("file", "folder") if folder else ("folder", "file")
                raise SweepError(f"{path} is a {is_}, and should be a {should}: move it away")

    @property
    def manifest(self) -> Manifest:
        """The sweep's manifest, written by `tune.running.prepare`. Raises SweepError for a damaged one."""
        self.check_layout()
        path = self.path / "manifest.json"
        try:
            values = parse_json(path.read_text())
        except (OSError, ValueError) as error:
            raise SweepError(f"{path} can't be read: {error}") from None
        if not isinstance(values, dict):
            raise SweepError(f"{path} is not the manifest of a sweep")
        return Manifest(path, values)

    def refuse_links(self) -> None:
        """Raise SweepError for a symbolic link in the folder: a sweep only writes and removes files within it."""
        for place, folders, files in os.walk(self.path):
            folders[:] = [name for name in folders if not name.startswith(".ray-")]  # Ray's own
            for name in (*folders, *files):
                if os.path.islink(os.path.join(place, name)):
                    raise SweepError(
                        f"{os.path.join(place, name)} is a symbolic link, through which the sweep could write or remove files "
                        "elsewhere; replace it by the files themselves"
                    )

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        write_atomically(self.path / "manifest.json", json.dumps(manifest, indent=1))

    def driver(self, *, certain: bool = False) -> dict[str, Any] | None:
        """Return the last heartbeat of the current driver; None if no driver is alive.

        Args:
            certain: Whether to watch for ten seconds if a driver on another host, with a wrong clock or a slow disk, still
                renews its lease. Otherwise such a driver counts as dead.
        """
        newest = holder(self.path)
        if newest is None:
            return None
        alive = newest.alive
        if alive is None and certain:
            alive = watch(self.path, newest)
        return newest.facts if alive else None

    # The request to stop.

    def request_stop(self) -> None:
        (self.path / "STOP").write_text(f"{time.time()}\n")

    def stop_requested(self) -> bool:
        return (self.path / "STOP").exists()

    def clear_stop(self) -> None:
        (self.path / "STOP").unlink(missing_ok=True)


def spec_of(folder: SweepFolder) -> SweepSpec:
    """Return the space of an existing sweep, as resolved at its start or last extension."""
    values, file = folder.manifest["spec"], str(folder.path / "manifest.json")
    refuse_missing(folder.manifest.get("parts"), file)
    resources = values.get("resources")
    if isinstance(resources, dict) and isinstance(gpus := resources.get("gpus"), int | float) and gpus > 1:
        # Older versions accepted more than one GPU for a trial, but used one.
        values = {**values, "resources": {**resources, "gpus": 1.0}}
    return parse(SweepSpec, values, file)


@contextlib.contextmanager
def driver_lease(folder: SweepFolder, take_over: bool = False) -> Iterator[Lease]:
    """Hold the lease on a sweep; release it at the end."""
    lease = Lease.take(folder.path, take_over=take_over)
    try:
        yield lease
    finally:
        lease.release()


def sweep_argument(folder: SweepFolder) -> str:
    """Return a sweep's name for the command line, or its path if it is in another storage."""
    usual = storage_root(None) == folder.path.parent
    return folder.name if usual else str(folder.path)
