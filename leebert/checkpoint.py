"""Checkpoints of a training run: tensors in safetensors, the rest in JSON, a digest over both. Nothing is unpickled."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from leebert.errors import CheckpointError, StorageError
from leebert.files import fsync_folder, parse_json, replaced

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Everything that a run needs to resume: tensors by name, and plain values."""

    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]


class Checkpoints:
    """The newest two checkpoints of one run: should the last be damaged, the one before costs an epoch, not the run.

    folder: where this process writes, and nobody else does. earlier: folders in which other processes left checkpoints
    of the same run; they are read, and removed once newer ones take their places. known: the digests that count, where
    somebody kept them (None: a checkpoint vouches for itself). anew: what to do where all are damaged: start again,
    or raise CheckpointError.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        earlier: Collection[Path] = (),
        known: Collection[str] | None = None,
        anew: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.earlier, self.known, self.anew = tuple(earlier), known, anew
        self._newest: Path | None = None  # the last one that this process wrote or found sound

    def save(self, snapshot: Snapshot, epoch: int) -> str:
        """Write and fsync the checkpoint of an epoch's end, and return its digest. Raises StorageError."""
        temporary = self.folder / f".epoch-{epoch:04d}-{secrets.token_hex(4)}"
        try:
            # Before the new one is written, so that there are never three.
            for path in (*self._all(), *self._unfinished()):
                if path != self._newest:
                    shutil.rmtree(path, ignore_errors=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            tensors = {name: t.detach().cpu().contiguous() for name, t in snapshot.tensors.items()}
            save_file(tensors, temporary / "state.safetensors")
            state = {"tensors": _digest(temporary / "state.safetensors"), "meta": snapshot.meta}
            (temporary / "state.json").write_text(json.dumps(state))
            digest = _digest(temporary / "state.json")
            for file in ("state.safetensors", "state.json"):
                with open(temporary / file, "rb+") as f:
                    os.fsync(f.fileno())
            final = self.folder / f"epoch-{epoch:04d}"
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            fsync_folder(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise StorageError(f"a checkpoint can't be written into {self.folder}: {error}") from None
        self._newest = final
        return digest

    def load(self) -> Snapshot | None:
        """The newest sound checkpoint that counts, or None where the run starts from its beginning."""
        damaged = ""
        for path in sorted(self._all(), key=lambda p: (p.name, p.parent == self.folder), reverse=True):
            try:
                state = (path / "state.json").read_bytes()
                if self.known is not None and hashlib.sha256(state).hexdigest() not in self.known:
                    # Of an epoch that was never recorded, or written after the run had been given to another process.
                    raise ValueError("its digest is not the recorded one")
                values = parse_json(state)
                if _digest(path / "state.safetensors") != values["tensors"]:
                    raise ValueError("its contents don't match its digest")
                snapshot = Snapshot(load_file(path / "state.safetensors"), values["meta"])
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                damaged = damaged or f"checkpoint {path} can't be used: {error}"
                continue
            if damaged:
                log.warning("%s; going on from %s", damaged, path.name)
            self._newest = path
            return snapshot
        if damaged and not self.anew:
            raise CheckpointError(f"{damaged}; delete {self.folder} to start this run from its beginning")
        if damaged:
            log.warning("%s; the run starts again from its beginning", damaged)
        return None

    def clear(self) -> None:
        """Remove every checkpoint of this run."""
        for folder in (self.folder, *self.earlier):
            shutil.rmtree(folder, ignore_errors=True)

    def _unfinished(self) -> Iterator[Path]:
        """What was being written when its process was killed."""
        for folder in (self.folder, *self.earlier):
            yield from folder.glob(".epoch-*")

    def _all(self) -> Iterator[Path]:
        for folder in (self.folder, *self.earlier):
            yield from folder.glob("epoch-*")


class BestWeights:
    """The weights of a run's best epochs, one file each, beside its checkpoints, which say the epoch that counts.

    One of them is written before the checkpoint that knows of it: a run that is killed between and goes on where numbers
    are rounded otherwise may find another epoch the best. So the last two that checkpoints may know stay.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known = 0  # the best epoch in the checkpoint before the last

    def keep(self, epoch: int, model: Any) -> None:
        """Write a model's weights as those of an epoch. Raises StorageError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        weights = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
        try:
            with replaced(self._file(epoch)) as temporary:
                save_file(weights, temporary)
        except (OSError, SafetensorError) as error:
            raise StorageError(f"the best epoch's weights can't be written into {self.folder}: {error}") from None

    def checkpointed(self, best: int | None) -> None:
        """The newest checkpoint says that this epoch is the best: remove what no checkpoint goes back to."""
        for path in self.folder.glob("best-*.safetensors"):
            if path.name < self._file(self._known).name:
                path.unlink()
        self._known = best or 0

    def load(self, epoch: int) -> dict[str, torch.Tensor]:
        """The weights of an epoch. Raises CheckpointError."""
        try:
            weights: dict[str, torch.Tensor] = load_file(self._file(epoch))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{self._file(epoch)} can't be used: {error}; delete {self.folder} to start this run from its beginning"
            ) from None
        return weights

    def _file(self, epoch: int) -> Path:
        return self.folder / f"best-{epoch:04d}.safetensors"


def _digest(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
