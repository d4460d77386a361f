"""Identity of a result: digests of weights and code, versions of libraries."""

from __future__ import annotations

import collections
import hashlib
import importlib.metadata
import json
import operator
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from leebert.images.backbones import is_network
from leebert.outside import same_origin

LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "scikit-learn",
    "ray",
    "optuna",
    "mlflow",
    "pyarrow",
    "pillow",
)

_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "spiece.model",
    "vocab.json",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_TOKENIZER_FILES = ("tokenizer_config.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions of Python and of installed libraries, and those of further packages."""
    result = {"python": platform.python_version()}
    for name in (*LIBRARIES, *packages):
        try:
            result[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return result


def git_commit() -> str:
    """Return the git commit of this package's checkout; empty for an installed package or without git."""
    root = Path(__file__).parent
    git = ["git", "-C", str(root)]
    try:
        # A package in someone else's repository, such as in its virtual environment, is not tracked there.
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", "provenance.py"], check=True, capture_output=True, timeout=5
        )
        answer = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, timeout=5, text=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()


def code_version() -> str:
    """Return the version of this package with a digest of its Python sources."""
    import leebert

    digest = hashlib.sha256()
    root = Path(leebert.__file__).parent
    for folder in (root, root.parent / "tune"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(root.parent)).encode() + b"\0" + path.read_bytes())
    return f"{leebert.__version__}+{digest.hexdigest()[:12]}"


#: Parts of an identity, in the order of :func:`differences`.
IDENTITY = ("data_fingerprint", "backbone", "code", "versions", "parts", "runtime")

#: Sections in which a part of one side only is also a difference, such as a library that isn't installed.
_WHOLE = ("versions",)


class Difference(NamedTuple):
    """A difference of two identities.

    Attributes:
        name: The part, such as `code` or `versions torch`.
        before: Its value in the first identity.
        after: Its value in the second.
    """

    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.name} was {self.before}, is {self.after}"


def differing(
    was: Mapping[str, Any], now: Mapping[str, Any], keys: Iterable[str] = IDENTITY
) -> Iterator[Difference | str]:
    """Compare two identities part by part.

    Args:
        was: The recorded identity: parts, and sections of parts such as `versions`.
        now: The present identity.
        keys: Parts and sections to compare, in the order of the differences.

    Yields:
        Each difference, or a sentence about a backbone whose files can't be compared. A key or part that one side lacks is not
        a difference, except in the section `versions`.
    """
    for key in keys:
        before, after = was.get(key), now.get(key)
        if before is None or after is None or before == after:
            continue
        if key == "backbone":
            yield from (f"backbone {line}" for line in backbone_differences(before, after))
        elif isinstance(before, Mapping) and isinstance(after, Mapping):
            parts = before.keys() | after.keys() if key in _WHOLE else before.keys() & after.keys()
            same: Callable[[Any, Any], bool] = same_origin if key == "parts" else operator.eq
            for part in sorted(parts):
                if not same(before.get(part), after.get(part)):
                    yield Difference(f"{key} {part}", before.get(part), after.get(part))
        else:
            yield Difference(key, before, after)


def differences(was: Mapping[str, Any], now: Mapping[str, Any], keys: Iterable[str] = IDENTITY) -> list[str]:
    """Describe the differences of two identities (:func:`differing`), such as `versions torch was 2.4.0, is 2.5.1`.

    Args:
        was: The recorded identity.
        now: The present one.
        keys: The keys to compare.

    Returns:
        One line per difference.
    """
    return [str(difference) for difference in differing(was, now, keys)]


def uneven(runtimes: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the settings in which the runtimes of related results differ, with the number of results per value.

    Args:
        runtimes: The recorded settings of each result; missing ones are not counted.

    Returns:
        One line per setting.
    """
    lines = []
    for part in sorted({part for runtime in runtimes for part in runtime}):
        counts = collections.Counter(
            json.dumps(runtime[part], sort_keys=True) for runtime in runtimes if part in runtime
        ).most_common()
        if len(counts) > 1:
            lines.append(f"{part} " + ", ".join(f"{value.strip(chr(34))} in {count}" for value, count in counts))
    return lines


def backbone_identity(spec: str) -> dict[str, Any]:
    """Identify a backbone by digests of its files, in a folder or in the hub's local cache.

    Args:
        spec: Name of the backbone.

    Returns:
        `name`; `revision` on the hub; and digests: `weights` (all safetensors), `config` (config.json), `tokenizer`
        (vocabulary), `tokenizer_files` (all files of the tokenizer). Parts without files are omitted.
    """
    if is_network(spec):  # trained from scratch, so its name identifies it
        return {"name": spec, "revision": spec}
    from leebert.backbone import load_config
    from leebert.backbone_files import locate

    location, revision = locate(spec)
    identity: dict[str, Any] = {"name": spec}
    folder = Path(location)
    if not folder.is_dir():
        commit = getattr(load_config(spec), "_commit_hash", None) or revision
        identity["revision"] = commit
        folder = _snapshot(location, commit) or folder
    vocabularies = [folder / name for name in _VOCABULARIES if (folder / name).is_file()]
    parts = {
        "weights": sorted(folder.glob("model*.safetensors")),
        "config": [folder / "config.json"],
        "tokenizer": vocabularies[:1],
        "tokenizer_files": sorted({*vocabularies, *(folder / name for name in _TOKENIZER_FILES)}),
    }
    for part, files in parts.items():
        existing = [path for path in files if path.is_file()]
        if existing:
            identity[part] = digest_of(existing[0]) if len(existing) == 1 else _digest_of_all(existing)
    return identity


def backbone_differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Compare the identities of two backbones.

    Weights must be equal or, if unknown, the revisions. Parts that one identity lacks are not differences.

    Args:
        was: The recorded identity.
        now: The present one.

    Returns:
        One line per difference.
    """
    decisive = next((part for part in ("weights", "revision") if was.get(part) and now.get(part)), None)
    if decisive is None:
        recorded, present = (", ".join(key for key in side if key != "name") or "nothing" for side in (was, now))
        return [f"files can't be compared: recorded are {recorded}, present are {present}"]
    parts = (decisive, "config", "tokenizer", "tokenizer_files")
    return [
        f"{part} was {was[part]}, is {now[part]}"
        for part in parts
        if was.get(part) and now.get(part) and was[part] != now[part]
    ]


def _snapshot(repo: str, revision: str | None) -> Path | None:
    """Find the folder of a model's revision in the hub's cache; None if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None


def _digest_of_all(paths: Sequence[Path]) -> str:
    lines = "".join(f"{path.name} {digest_of(path)}\n" for path in paths)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def digest_of(path: Path) -> str:
    """Return the first 16 hexadecimal digits of a file's SHA-256."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()[:16]
