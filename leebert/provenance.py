"""What a result depends on: digests of weights and code, versions of libraries."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "scikit-learn", "ray", "optuna", "mlflow", "pyarrow")


def versions() -> dict[str, str]:
    """Python's and the libraries' versions, those that are installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def code_version() -> str:
    """The version of this package, and a digest of its Python sources."""
    import leebert

    digest = hashlib.sha256()
    root = Path(leebert.__file__).parent
    for folder in (root, root.parent / "tune"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(root.parent)).encode() + b"\0" + path.read_bytes())
    return f"{leebert.__version__}+{digest.hexdigest()[:12]}"


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between what a result was found with and the present, a line each: versions, code, runtime, data."""
    lines = []
    for key in ("data_fingerprint", "backbone", "code", "versions", "runtime"):
        before, after = was.get(key), now.get(key)
        if before is None or after is None or before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            for part in sorted({*before, *after}):
                if before.get(part) != after.get(part):
                    lines.append(f"{key} {part} was {before.get(part)}, is {after.get(part)}")
        else:
            lines.append(f"{key} was {before}, is {after}")
    return lines


def backbone_identity(spec: str) -> dict[str, Any]:
    """The backbone's name, its revision on the hub, and digests of weights and tokenizer where these are local files."""
    from leebert.backbone import load_config, locate

    where, revision = locate(spec)
    found: dict[str, Any] = {"name": spec}
    if not Path(where).is_dir():
        return {**found, "revision": getattr(load_config(spec), "_commit_hash", None) or revision}
    for key, names in (
        ("weights", ("model.safetensors",)),
        ("tokenizer", ("tokenizer.json", "vocab.txt", "spiece.model", "vocab.json")),
    ):
        for name in names:
            if (Path(where) / name).is_file():
                found[key] = digest_of(Path(where) / name)
                break
    return found


def digest_of(path: Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()[:16]
