"""The files that come with the package: search spaces by name, and what starts a cluster and MLflow.

They lie under `tune/shipped`, in a checkout as links to the folders at its top, in a wheel as copies.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from leebert.errors import ConfigError, nearest
from leebert.files import check_writable

#: Where they are: an installed package lies in a folder, never in a zip file.
SHIPPED = Path(__file__).resolve().parent.parent / "shipped"

#: The name by which the files of a cluster are copied.
CLUSTER = "cluster"

#: Each of these files and folders, relative to :data:`SHIPPED`.
_OF_A_CLUSTER = ("cluster.yaml", "cluster", "mlflow", "constraints.txt")


@dataclasses.dataclass(frozen=True)
class ShippedSpace:
    """A search space that comes with the package: its name, its file, and the first sentence of its header."""

    name: str
    path: Path
    title: str


def shipped_spaces() -> tuple[ShippedSpace, ...]:
    """All search spaces that come with the package, by name."""
    files = sorted((SHIPPED / "search_spaces").glob("*.yaml"))
    return tuple(ShippedSpace(path.stem, path, _title(path)) for path in files)


def _title(path: Path) -> str:
    """The comment before the first empty comment line, as one line."""
    words = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or not line.strip("# "):
            break
        words.append(line.strip("# "))
    return " ".join(words)


def find_space(named: str | Path) -> Path:
    """The file of a search space that is named by its path or, if it comes with the package, by its name.

    A file of the user's is taken before one of the package; a folder is none. Names are compared without regard to case.

    Raises:
        ConfigError: for a bare name that neither a file nor a search space of the package has.
    """
    path = Path(named)
    if (path.exists() and not path.is_dir()) or path.suffix or len(path.parts) != 1:
        return path  # whoever reads it says what is wrong with it
    spaces = {space.name: space.path for space in shipped_spaces()}
    if path.name.lower() not in spaces:
        raise ConfigError(
            f"{named}: neither a file nor a search space of the package{nearest(path.name, spaces)}; "
            "`leebert-tune spaces` lists those"
        )
    return spaces[path.name.lower()]


def copy_shipped(name: str, into: Path) -> list[Path]:
    """Copy a search space by its name, or the files of a cluster, into a folder; returns what was written.

    Raises:
        ConfigError: for an unknown name, and for a file that is there already: nothing is overwritten.
    """
    if name.lower() == CLUSTER:
        sources = [SHIPPED / part for part in _OF_A_CLUSTER]
    else:
        spaces = {space.name: space.path for space in shipped_spaces()}
        if name.lower() not in spaces:
            raise ConfigError(
                f"--copy {name}: no search space of the package{nearest(name, [*spaces, CLUSTER])}; there are: "
                f"{', '.join(spaces)}; and {CLUSTER}, for the files that start one"
            )
        sources = [spaces[name.lower()]]
    written = [into / source.name for source in sources]
    for path in written:
        if path.exists() or path.is_symlink():
            raise ConfigError(f"--copy {name}: {path} is there already; remove it, or name another folder")
    check_writable(into, "--copy")
    into.mkdir(parents=True, exist_ok=True)
    for source, target in zip(sources, written, strict=True):
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)  # with its mode: scripts are to be run
    return written
