"""What a result depends on: digests of weights and code, versions of libraries."""

from __future__ import annotations

import collections
import hashlib
import importlib.metadata
import json
import operator
import platform
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


def versions(more: Iterable[str] = ()) -> dict[str, str]:
    """Python's and the libraries' versions, those that are installed; of `more` packages, too."""
    found = {"python": platform.python_version()}
    for name in (*LIBRARIES, *more):
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


#: What a result depends on, in the order in which :func:`differences` names it.
IDENTITY = ("data_fingerprint", "backbone", "code", "versions", "parts", "runtime")

#: Sections of an identity in which a part that only one side has is a difference, too: a library that isn't installed.
_WHOLE = ("versions",)


class Difference(NamedTuple):
    """One part in which two identities differ. name: such as `code` or `versions torch`."""

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
        was: An identity as it was recorded: parts, or sections of parts such as `versions`.
        now: The identity to compare with it.
        keys: Which parts and sections count, in the order of the differences.

    Yields:
        Each difference; a sentence about a backbone whose files can't be compared. A key that one side lacks is no
        difference, and neither is a part of a section, unless the section is `versions`.
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
    """Say how two identities differ, a line each (:func:`differing`), such as `versions torch was 2.4.0, is 2.5.1`."""
    return [str(difference) for difference in differing(was, now, keys)]


def uneven(runtimes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where results that belong together were found with several settings, a line each: which, and how often.

    The settings of a runtime that isn't known are counted nowhere.
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
    """The backbone's name, its revision on the hub, and digests of its files: of a folder, or of the hub's local copy.

    weights: all safetensors. config: config.json. tokenizer: its vocabulary. tokenizer_files: all that is its. A part
    whose files are not there is left out.
    """
    if is_network(spec):  # made anew by every training: its name says all of it
        return {"name": spec, "revision": spec}
    from leebert.backbone import load_config, locate

    where, revision = locate(spec)
    found: dict[str, Any] = {"name": spec}
    folder = Path(where)
    if not folder.is_dir():
        commit = getattr(load_config(spec), "_commit_hash", None) or revision
        found["revision"] = commit
        folder = _snapshot(where, commit) or folder
    vocabularies = [folder / name for name in _VOCABULARIES if (folder / name).is_file()]
    parts = {
        "weights": sorted(folder.glob("model*.safetensors")),
        "config": [folder / "config.json"],
        "tokenizer": vocabularies[:1],
        "tokenizer_files": sorted({*vocabularies, *(folder / name for name in _TOKENIZER_FILES)}),
    }
    for part, files in parts.items():
        there = [path for path in files if path.is_file()]
        if there:
            found[part] = digest_of(there[0]) if len(there) == 1 else _digest_of_all(there)
    return found


def backbone_differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Why two identities are not of one backbone, a line each; none where they are.

    What only one of them knows is no difference, but weights or, where these are not known, the revision must agree.
    """
    decisive = next((part for part in ("weights", "revision") if was.get(part) and now.get(part)), None)
    if decisive is None:
        known, here = (", ".join(key for key in side if key != "name") or "nothing" for side in (was, now))
        return [f"files can't be compared: of the one {known} is known, of the other {here}"]
    parts = (decisive, "config", "tokenizer", "tokenizer_files")
    return [
        f"{part} was {was[part]}, is {now[part]}"
        for part in parts
        if was.get(part) and now.get(part) and was[part] != now[part]
    ]


def _snapshot(repo: str, revision: str | None) -> Path | None:
    """The folder of the hub's cache that holds a model at a revision; None where there is none."""
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
    """The first 16 hexadecimal digits of a file's SHA-256."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()[:16]
