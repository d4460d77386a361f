"""Where a backbone's files are: a folder, an installed package, or the hub; torch-free."""

from __future__ import annotations

import difflib
import importlib.util
import pkgutil
from pathlib import Path

from leebert.errors import BackboneError


def _similar(name: str) -> str:
    """Suggest an installed package with a similar name; empty if there is none."""
    installed = [module.name for module in pkgutil.iter_modules() if module.ispkg]
    close = difflib.get_close_matches(name, installed, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def locate(spec: str) -> tuple[str, str | None]:
    """Resolve the name of a backbone.

    Args:
        spec: A folder, `package:NAME/path` for weights inside an installed package, or a hub id with an optional @revision.

    Returns:
        Folder or hub id, and the revision.

    Raises:
        BackboneError: The folder or package does not exist.
    """
    if spec.startswith("package:"):
        name, _, inner = spec.removeprefix("package:").partition("/")
        package = importlib.util.find_spec(name) if name.isidentifier() else None
        if package is None or not package.submodule_search_locations:
            raise BackboneError(
                f"backbone {spec}: no package {name!r} is installed{_similar(name)}; check the name, or install the package "
                "that contains the weights"
            )
        root = Path(next(iter(package.submodule_search_locations))).resolve()
        folder = (root / inner).resolve()
        if root not in (folder, *folder.parents):
            raise BackboneError(f"backbone {spec}: the path points outside the package")
        return _folder(spec, folder), None
    if Path(spec).exists() or spec.startswith((".", "/", "~")):
        return _folder(spec, Path(spec).expanduser()), None
    name, _, revision = spec.partition("@")
    return name, revision or None


def _folder(spec: str, folder: Path) -> str:
    if not folder.is_dir():
        raise BackboneError(f"backbone {spec}: no folder {folder}")
    if not (folder / "config.json").is_file():
        raise BackboneError(f"backbone {spec}: no config.json in {folder}; give a folder in Hugging Face's layout")
    return str(folder)
