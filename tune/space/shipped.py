"""The files shipped with the package: search spaces by name, and the files that start a cluster and MLflow.

They are under `tune/shipped`, in a checkout as links to its top-level folders, in a wheel as copies.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from leebert.errors import ConfigError, nearest
from leebert.files import check_writable

#: Their folder; an installed package is a folder, never a zip file.
SHIPPED = Path(__file__).resolve().parent.parent / "shipped"

#: The name of a cluster's files for `--copy`.
CLUSTER = "cluster"

#: The files and folders of a cluster, relative to :data:`SHIPPED`.
_OF_A_CLUSTER = ("cluster.yaml", "cluster", "mlflow", "constraints.txt")


@dataclasses.dataclass(frozen=True)
class ShippedSpace:
    """A search space of the package: its name, its file, and the first sentence of its header."""

    name: str
    path: Path
    title: str


def shipped_spaces() -> tuple[ShippedSpace, ...]:
    """Return all search spaces of the package, by name."""
    files = sorted((SHIPPED / "search_spaces").glob("*.yaml"))
    return tuple(ShippedSpace(path.stem, path, _title(path)) for path in files)


def _title(path: Path) -> str:
    """Return the comment before the first empty comment line, as one line."""
    words = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or not line.strip("# "):
            break
        words.append(line.strip("# "))
    return " ".join(words)


def find_space(name: str | Path) -> Path:
    """Find a search space by its path or, for one of the package, by its name (in any case).

    A user's file takes precedence over one of the package; a folder does not.

    Raises:
        ConfigError: The name is neither a file nor a search space of the package.
    """
    path = Path(name)
    if (path.exists() and not path.is_dir()) or path.suffix or len(path.parts) != 1:
        return path  # reading it reports what is wrong
    spaces = {space.name: space.path for space in shipped_spaces()}
    if path.name.lower() not in spaces:
        raise ConfigError(
            f"{name}: neither a file nor a search space of the package{nearest(path.name, spaces)}; "
            "`leebert-tune spaces` lists those"
        )
    return spaces[path.name.lower()]


def copy_shipped(name: str, into: Path) -> list[Path]:
    """Copy a search space by its name, or the files of a cluster, into a folder; return the written paths.

    Raises:
        ConfigError: The name is unknown, or a file exists: nothing is overwritten.
    """
    if name.lower() == CLUSTER:
        sources = [SHIPPED / part for part in _OF_A_CLUSTER]
    else:
        spaces = {space.name: space.path for space in shipped_spaces()}
        if name.lower() not in spaces:
            raise ConfigError(
                f"--copy {name}: no search space of the package{nearest(name, [*spaces, CLUSTER])}; one of "
                f"{', '.join(spaces)}, or {CLUSTER} for the files that start a cluster"
            )
        sources = [spaces[name.lower()]]
    written = [into / source.name for source in sources]
    for path in written:
        if path.exists() or path.is_symlink():
            raise ConfigError(f"--copy {name}: {path} exists already; remove it, or name another folder")
    check_writable(into, "--copy")
    into.mkdir(parents=True, exist_ok=True)
    for source, target in zip(sources, written, strict=True):
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)  # with its mode, since scripts must stay executable
    return written
