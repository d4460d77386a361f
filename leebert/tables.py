"""Tables in the documents that are made from the registries: ``python -m leebert.tables`` writes them anew.

A document has a table between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``, where NAME is a table's name below.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from leebert.errors import ConfigError
from leebert.exits import CRITERIA
from leebert.methods import METHODS, Method
from leebert.metrics import METRICS

_MARKED = re.compile(r"(<!-- (?P<name>[\w-]+):begin -->\n)(?P<body>.*?)(<!-- (?P=name):end -->)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: What the markers in a document call it.
        columns: Its headings.
        rows: Makes its rows, each with a cell for each heading; cells are Markdown.
    """

    name: str
    columns: tuple[str, ...]
    rows: Callable[[], Iterable[Sequence[str]]]

    def markdown(self) -> str:
        """Write the table as Markdown, with a newline at its end."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows()]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _built_in() -> list[Method]:
    """List this project's own methods: what else is installed stands in no document."""
    return [METHODS[name] for name in METHODS.built_in]


def _methods() -> Iterable[Sequence[str]]:
    for method in _built_in():
        yield f"`{method.name}`", f"{method.title} ({method.source})", method.trains, method.exits, method.cost


def _criteria() -> Iterable[Sequence[str]]:
    for row in (CRITERIA[name] for name in CRITERIA.built_in):
        yield f"`{row.name}`", row.title, row.thresholds, row.earliest, row.source


def _metrics() -> Iterable[Sequence[str]]:
    for row in (METRICS[name] for name in METRICS.built_in):
        yield f"`{row.name}`", row.title, ", ".join(f"`{name}`" for name in row.measures), row.source


def _colours() -> Iterable[Sequence[str]]:
    for method in sorted(_built_in(), key=lambda method: method.chart_order):
        yield f"`{method.name}`", method.label, f"`{method.colour}`" if method.colour else ""


#: Every table; `tune` has none of its own.
TABLES: tuple[Table, ...] = (
    Table("methods", ("`algorithm`", "method", "what trains", "exits by", "cost"), _methods),
    Table("criteria", ("criterion", "a sample exits when", "threshold", "first exit", "source"), _criteria),
    Table("metrics", ("metric", "score", "measures", "used by"), _metrics),
    Table("colours", ("method", "`approach`", "colour"), _colours),
)


def rendered(text: str, where: str) -> str:
    """Make the tables of a document anew.

    Args:
        text: The document.
        where: What messages call it.

    Returns:
        The document, equal to `text` where its tables are up to date.

    Raises:
        ConfigError: It has markers of a table that does not exist.
    """
    tables = {table.name: table for table in TABLES}

    def made(match: re.Match[str]) -> str:
        if match["name"] not in tables:
            raise ConfigError(f"{where}: no table {match['name']!r}; use one of {', '.join(tables)}")
        return f"{match[1]}{tables[match['name']].markdown()}{match[4]}"

    return _MARKED.sub(made, text)


def documents(root: Path) -> list[Path]:
    """List the Markdown documents of a checkout: those at its top, and those in `docs` and in `search_spaces`."""
    return sorted({*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("search_spaces/*.md")})


def main() -> None:
    """Write the tables of every document of the checkout that this package lies in."""
    made = argparse.ArgumentParser(prog="python -m leebert.tables", description=main.__doc__)
    made.add_argument("--check", action="store_true", help="write nothing; name the documents that are out of date")
    check = made.parse_args().check
    root = Path(__file__).resolve().parent.parent
    stale = []
    for path in documents(root):
        text = path.read_text(encoding="utf-8")
        if (new := rendered(text, str(path))) != text:
            stale.append(path.relative_to(root).as_posix())
            if not check:
                path.write_text(new, encoding="utf-8")
    if stale:
        print(f"{'out of date' if check else 'written'}: {', '.join(stale)}")
    sys.exit(int(check and bool(stale)))


if __name__ == "__main__":
    main()
