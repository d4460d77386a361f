"""Generate the documents' tables from the registries; ``make tables`` (`tune.tables`) updates them.

A table is between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``, where NAME is a name of :data:`TABLES`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from leebert.errors import ConfigError
from leebert.exits import CRITERIA
from leebert.methods import METHODS, Method
from leebert.metrics import METRICS

_MARKED = re.compile(r"(<!-- (?P<name>[\w-]+):begin -->\n)(?P<body>.*?)(<!-- (?P=name):end -->)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class DocumentTable:
    """One generated table.

    Attributes:
        name: Its name in the markers of a document.
        columns: The headings.
        rows: Makes the rows, with one Markdown cell per heading.
    """

    name: str
    columns: tuple[str, ...]
    rows: Callable[[], Iterable[Sequence[str]]]

    def markdown(self) -> str:
        """Write the table as Markdown, with a newline at its end."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows()]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _built_in() -> list[Method]:
    """List this project's methods; documents omit methods of other installed packages."""
    return METHODS.own()


def _methods() -> Iterable[Sequence[str]]:
    for method in _built_in():
        yield f"`{method.name}`", f"{method.title} ({method.source})", method.trains, method.exits, method.cost


def _criteria() -> Iterable[Sequence[str]]:
    for row in CRITERIA.own():
        yield f"`{row.name}`", row.title, row.thresholds, row.earliest, row.source


def _metrics() -> Iterable[Sequence[str]]:
    for row in METRICS.own():
        yield f"`{row.name}`", row.title, ", ".join(f"`{name}`" for name in row.measures), row.source


def _colours() -> Iterable[Sequence[str]]:
    for method in sorted(_built_in(), key=lambda method: method.chart_order):
        yield f"`{method.name}`", method.label, f"`{method.colour}`" if method.colour else ""


#: The tables of this package; `tune.tables` has those of searchers and pruners.
TABLES: tuple[DocumentTable, ...] = (
    DocumentTable(
        "methods",
        ("`algorithm`", "method", "what is trained", "exit criterion", "cost per step (fine-tuning: 1)"),
        _methods,
    ),
    DocumentTable("criteria", ("criterion", "a sample exits when", "threshold", "earliest exit", "source"), _criteria),
    DocumentTable("metrics", ("metric", "score", "component measures", "source"), _metrics),
    DocumentTable("colours", ("method", "`approach`", "colour"), _colours),
)


def rendered(text: str, where: str, tables: Iterable[DocumentTable] = TABLES) -> str:
    """Update the tables of a document.

    Args:
        text: The document.
        where: Its name in messages.
        tables: The tables that its markers may name.

    Returns:
        The document, equal to `text` if its tables are up to date.

    Raises:
        ConfigError: Its markers name a table that does not exist.
    """
    by_name = {table.name: table for table in tables}

    def made(match: re.Match[str]) -> str:
        if match["name"] not in by_name:
            raise ConfigError(f"{where}: table {match['name']!r} does not exist; use one of {', '.join(by_name)}")
        return f"{match[1]}{by_name[match['name']].markdown()}{match[4]}"

    return _MARKED.sub(made, text)


def documents(root: Path) -> list[Path]:
    """List the Markdown documents of a checkout: those at its top, in `docs` and in `search_spaces`."""
    return sorted({*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("search_spaces/*.md")})
