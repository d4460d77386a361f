"""Checkpoints of a training run: tensors in safetensors, the rest in JSON, a digest over both. Nothing is unpickled."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from leebert.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Everything that a run needs to go on as if it had never stopped: tensors by name and plain values."""

    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]


class Checkpoints:
    """The newest checkpoint of one run in a folder of its own. At most two exist, while one replaces the other."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def save(self, snapshot: Snapshot, epoch: int) -> str:
        """Write and fsync the checkpoint of an epoch's end, then drop older ones; returns its digest."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".epoch-{epoch:04d}-{socket.gethostname()}-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        tensors = {name: t.detach().cpu().contiguous() for name, t in snapshot.tensors.items()}
        save_file(tensors, temporary / "state.safetensors")
        digest = _digest(temporary / "state.safetensors")
        (temporary / "state.json").write_text(json.dumps({"tensors": digest, "meta": snapshot.meta}))
        for file in ("state.safetensors", "state.json"):
            with open(temporary / file, "rb+") as f:
                os.fsync(f.fileno())
        final = self.folder / f"epoch-{epoch:04d}"
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        for other in self._all():
            if other != final:
                shutil.rmtree(other, ignore_errors=True)
        return digest

    def load(self) -> Snapshot | None:
        """The newest checkpoint, or None where there is none. A damaged one raises CheckpointError."""
        found = self._all()
        if not found:
            return None
        newest = found[-1]
        try:
            state = json.loads((newest / "state.json").read_text())
            if _digest(newest / "state.safetensors") != state["tensors"]:
                raise ValueError("its contents don't match its digest")
            return Snapshot(load_file(newest / "state.safetensors"), state["meta"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(
                f"checkpoint {newest} is damaged ({error}); delete that folder to start this run from its beginning"
            ) from None

    def clear(self) -> None:
        """Remove every checkpoint of this run."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("epoch-*"))


def _digest(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
