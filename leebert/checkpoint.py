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
    """Everything that a run needs to resume.

    Attributes:
        tensors: Tensors by name.
        meta: JSON-ready values.
    """

    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]


class Checkpoints:
    """The two newest checkpoints of a run. If the last is damaged, the run resumes from the one before.

    Args:
        folder: Folder of this process; no other process writes into it.
        earlier: Folders with checkpoints of the same run by other processes. They are read, and removed once newer
            checkpoints replace them.
        recorded: Digests of valid checkpoints, as recorded elsewhere; None: every checkpoint with a correct digest is valid.
        restart: If all checkpoints are damaged: True to start from the beginning, False to raise CheckpointError.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        earlier: Collection[Path] = (),
        recorded: Collection[str] | None = None,
        restart: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.earlier, self.recorded, self.restart = tuple(earlier), recorded, restart
        self._newest: Path | None = None  # the last one that this process wrote or loaded

    def save(self, snapshot: Snapshot, epoch: int) -> str:
        """Write and fsync the checkpoint of an epoch's end.

        Args:
            snapshot: The state of the run.
            epoch: Number of the epoch, from 0.

        Returns:
            The checkpoint's digest.

        Raises:
            StorageError: The checkpoint can't be written.
        """
        temporary = self.folder / f".epoch-{epoch:04d}-{secrets.token_hex(4)}"
        try:
            # Before writing the new one, so that there are never three.
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
        """Load the newest valid checkpoint.

        Returns:
            The state of the run; None if the run starts from the beginning.

        Raises:
            CheckpointError: All checkpoints are damaged, and `restart` is False.
        """
        damaged = ""
        for path in sorted(self._all(), key=lambda p: (p.name, p.parent == self.folder), reverse=True):
            try:
                state = (path / "state.json").read_bytes()
                if self.recorded is not None and hashlib.sha256(state).hexdigest() not in self.recorded:
                    # Its epoch was never recorded, or it was written after another process had taken over the run.
                    raise ValueError("its digest is not the recorded one")
                values = parse_json(state)
                if _digest(path / "state.safetensors") != values["tensors"]:
                    raise ValueError("its contents don't match its digest")
                snapshot = Snapshot(load_file(path / "state.safetensors"), values["meta"])
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                damaged = damaged or f"checkpoint {path} can't be used: {error}"
                continue
            if damaged:
                log.warning("%s; resuming from %s", damaged, path.name)
            self._newest = path
            return snapshot
        if damaged and not self.restart:
            raise CheckpointError(f"{damaged}; delete {self.folder} to restart this run")
        if damaged:
            log.warning("%s; restarting the run", damaged)
        return None

    def clear(self) -> None:
        """Remove every checkpoint of this run."""
        for folder in (self.folder, *self.earlier):
            shutil.rmtree(folder, ignore_errors=True)

    def _unfinished(self) -> Iterator[Path]:
        """Find incomplete checkpoints of killed processes."""
        for folder in (self.folder, *self.earlier):
            yield from folder.glob(".epoch-*")

    def _all(self) -> Iterator[Path]:
        for folder in (self.folder, *self.earlier):
            yield from folder.glob("epoch-*")


class BestWeights:
    """The weights of a run's best epochs, one file each; the checkpoint names the epoch.

    The weights of a best epoch are written before its checkpoint. A run that is killed in between, and resumed where
    rounding differs, may select another epoch. So the files of the two last checkpoints stay.

    Args:
        folder: The folder of the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._previous_best = 0  # the best epoch of the checkpoint before the last

    def keep(self, epoch: int, model: Any) -> None:
        """Write the model's weights under the number of an epoch. Raises StorageError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        weights = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
        try:
            with replaced(self._file(epoch)) as temporary:
                save_file(weights, temporary)
        except (OSError, SafetensorError) as error:
            raise StorageError(f"the best epoch's weights can't be written into {self.folder}: {error}") from None

    def checkpointed(self, best: int | None) -> None:
        """Remove the files that no checkpoint refers to.

        Args:
            best: The best epoch of the newest checkpoint; None if there is none.
        """
        for path in self.folder.glob("best-*.safetensors"):
            if path.name < self._file(self._previous_best).name:
                path.unlink()
        self._previous_best = best or 0

    def load(self, epoch: int) -> dict[str, torch.Tensor]:
        """Load the weights of an epoch. Raises CheckpointError."""
        try:
            weights: dict[str, torch.Tensor] = load_file(self._file(epoch))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{self._file(epoch)} can't be used: {error}; delete {self.folder} to restart this run"
            ) from None
        return weights

    def _file(self, epoch: int) -> Path:
        return self.folder / f"best-{epoch:04d}.safetensors"


def _digest(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
