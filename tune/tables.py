"""The documents' tables, those of searchers and pruners among them: ``python -m tune.tables`` writes them anew."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from leebert import tables
from leebert.tables import DocumentTable, documents, rendered
from tune.pruners import PRUNERS
from tune.searchers import SEARCHERS
from tune.space.plugins import SweepPlugin


def _options(plugin: SweepPlugin) -> str:
    """A plugin's options with defaults and descriptions."""
    fields = plugin.options.model_fields.items()
    return "; ".join(
        f"`{name}`{'' if field.default is None else f' ({field.default:g})'}: {field.description}"
        for name, field in fields
    )


def _searchers() -> Iterable[Sequence[str]]:
    for plugin in SEARCHERS.own():
        yield f"`{plugin.name}`", plugin.title, plugin.needs, _options(plugin), plugin.source


def _pruners() -> Iterable[Sequence[str]]:
    for plugin in PRUNERS.own():
        yield f"`{plugin.name}`", plugin.title, _options(plugin), plugin.source


TABLES: tuple[DocumentTable, ...] = (
    *tables.TABLES,
    DocumentTable("searchers", ("name", "proposes", "needs", "options", "source"), _searchers),
    DocumentTable("pruners", ("name", "stops a configuration", "options", "source"), _pruners),
)


def main() -> None:
    """Write the tables of every document of this package's checkout."""
    parser = argparse.ArgumentParser(prog="python -m tune.tables", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; name the documents that are out of date")
    check = parser.parse_args().check
    root = Path(__file__).resolve().parent.parent
    stale = []
    for path in documents(root):
        text = path.read_text(encoding="utf-8")
        if (new := rendered(text, str(path), TABLES)) != text:
            stale.append(path.relative_to(root).as_posix())
            if not check:
                path.write_text(new, encoding="utf-8")
    if stale:
        print(f"{'out of date' if check else 'written'}: {', '.join(stale)}")
    sys.exit(int(check and bool(stale)))


if __name__ == "__main__":
    main()
