"""A sweep's folder: its name, its files, who drives it now, and the request to stop it."""

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


#: What a sweep's folder may hold that is read or written by name: whether each is a folder.
LAYOUT = {
    "manifest.json": False, "space.yaml": False, "folds.json": False, "results.parquet": False, "STOP": False,
    "lease": True, "ledger": True, "ledger/driver": True, "checkpoints": True, "cells": True, "evaluated": True, "hung": True,
}  # fmt: skip

#: Keys of a manifest, and what each holds.
MANIFEST: dict[str, type | tuple[type, ...]] = {
    "spec": dict, "rows": int, "metric": str, "data_fingerprint": str, "folds": dict, "backbone": dict, "versions": dict,
    "code": str, "runtime": dict, "test_train_ratio": (int, float, type(None)),
}  # fmt: skip


class Manifest(dict[str, Any]):
    """What a sweep is made of, from its manifest.json; a key that is missing is an error of its file."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.path = path
        for key, kind in MANIFEST.items():
            if key in values and (not isinstance(values[key], kind) or isinstance(values[key], bool)):
                raise SweepError(
                    f"{path}: {key}: {str(values[key])[:80]!r} can't be right: the manifest was damaged or edited"
                )
        if "metric" in values and values["metric"] not in METRICS:
            refuse_missing(values.get("parts"), str(path))
            raise SweepError(
                f"{path}: metric: {values['metric'][:80]!r} can't be right: {METRICS.unknown(values['metric'][:80])}; else the "
                "manifest was damaged or edited"
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
        """A configuration's values by its id, where the space lists all; for a ledger that has lost its record of them."""
        if self._listed is None:
            self._listed = {}
            with contextlib.suppress(LeebertError, ValueError):
                spec = SweepSpec.model_validate(self.manifest.get("spec") or {})
                if spec.size is not None:
                    self._listed = {config_id(values): values for values in spec.configurations()}
        return self._listed.get(config)

    @classmethod
    def refuse_taken(cls, storage: Path, name: str) -> None:
        """SweepError for a name that a sweep has already, with the command to go on with that one."""
        if (storage / check_name(name)).exists():
            raise SweepError(
                f"a sweep named {name!r} exists in {storage}; go on with it by: leebert-tune resume {name}"
                + ("" if storage == storage_root(None) else f" --storage {storage}")
            )

    @classmethod
    @contextlib.contextmanager
    def create(cls, storage: Path, name: str) -> Iterator[SweepFolder]:
        """A new sweep's folder, to be filled: it takes its name only when that is done, whole or not at all."""
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
                cls.refuse_taken(storage, name)  # somebody else was faster
            raise StorageError(f"storage {storage} can't be written: {error.strerror or error}") from None
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    @classmethod
    def find(cls, name: str, storage: str | None = None) -> SweepFolder:
        """An existing sweep by name in the storage, or by path."""
        as_path = Path(name)
        path = as_path if (as_path / "manifest.json").exists() else storage_root(storage) / name
        if "/" not in name and not (path / "manifest.json").exists():
            check_name(name)
        if not (path / "manifest.json").exists():
            known = [folder.name for folder in cls.all(storage)]
            raise SweepError(
                f"no sweep {name!r} in {storage_root(storage)}"
                + (f"; there are: {', '.join(known)}" if known else "")
                + "; another storage is named by --storage or LEEBERT_STORAGE"
            )
        found = cls(path.resolve())
        found.check_layout()
        return found

    @classmethod
    def all(cls, storage: str | None = None) -> list[SweepFolder]:
        """All sweeps in a storage, by name."""
        return [cls(p.parent) for p in sorted(storage_root(storage).glob("[!.]*/manifest.json"))]

    def check_layout(self) -> None:
        """SweepError where a file lies in a folder's place, or a folder in a file's."""
        for name, folder in LAYOUT.items():
            path = self.path / name
            if path.exists() and not path.is_symlink() and path.is_dir() != folder:
                is_, should = ("file", "folder") if folder else ("folder", "file")
                raise SweepError(f"{path} is a {is_}, and should be a {should}: move it away")

    @property
    def manifest(self) -> Manifest:
        """What the sweep is made of: see `tune.running.prepare`. SweepError for a damaged one."""
        self.check_layout()
        path = self.path / "manifest.json"
        try:
            found = parse_json(path.read_text())
        except (OSError, ValueError) as error:
            raise SweepError(f"{path} can't be read: {error}") from None
        if not isinstance(found, dict):
            raise SweepError(f"{path} is no manifest of a sweep")
        return Manifest(path, found)

    def refuse_links(self) -> None:
        """SweepError for a symbolic link in the folder: what a sweep writes and removes is to lie in it."""
        for place, folders, files in os.walk(self.path):
            folders[:] = [name for name in folders if not name.startswith(".ray-")]  # Ray's own
            for name in (*folders, *files):
                if os.path.islink(os.path.join(place, name)):
                    raise SweepError(
                        f"{os.path.join(place, name)} is a symbolic link, and a sweep's folder has none: going on could write "
                        "or remove files elsewhere; put the files themselves in its place"
                    )

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        write_atomically(self.path / "manifest.json", json.dumps(manifest, indent=1))

    def driver(self, *, certain: bool = False) -> dict[str, Any] | None:
        """What the driver at work said last, or None where none is alive.

        `certain` takes ten seconds to see whether one of another host still renews its lease, where its clock or ours is
        wrong or it is slow; without it such a driver counts as dead.
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
    """The space of an existing sweep, as it was resolved when it started, or was extended last."""
    values, where = folder.manifest["spec"], str(folder.path / "manifest.json")
    refuse_missing(folder.manifest.get("parts"), where)
    resources = values.get("resources")
    if isinstance(resources, dict) and isinstance(gpus := resources.get("gpus"), int | float) and gpus > 1:
        # Older versions took more than one GPU for a trial, of which it used one.
        values = {**values, "resources": {**resources, "gpus": 1.0}}
    return parse(SweepSpec, values, where)


@contextlib.contextmanager
def driver_lease(folder: SweepFolder, take_over: bool = False) -> Iterator[Lease]:
    """The right to drive a sweep, released at the end."""
    lease = Lease.take(folder.path, take_over=take_over)
    try:
        yield lease
    finally:
        lease.release()


def sweep_argument(folder: SweepFolder) -> str:
    """What to call a sweep on the command line: its name, or its path where it lies elsewhere."""
    usual = storage_root(None) == folder.path.parent
    return folder.name if usual else str(folder.path)
