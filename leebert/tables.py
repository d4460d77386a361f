"""Tables in the documents that are made from the registries; ``make tables`` writes them anew (`tune.tables`).

A document has a table between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``, where NAME is a table's name below.
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


#: The tables of this package; `tune.tables` has those of searchers and pruners.
TABLES: tuple[Table, ...] = (
    Table("methods", ("`algorithm`", "method", "what trains", "exits by", "cost"), _methods),
    Table("criteria", ("criterion", "a sample exits when", "threshold", "first exit", "source"), _criteria),
    Table("metrics", ("metric", "score", "measures", "used by"), _metrics),
    Table("colours", ("method", "`approach`", "colour"), _colours),
)


def rendered(text: str, where: str, tables: Iterable[Table] = TABLES) -> str:
    """Make the tables of a document anew.

    Args:
        text: The document.
        where: What messages call it.
        tables: The tables that it may have.

    Returns:
        The document, equal to `text` where its tables are up to date.

    Raises:
        ConfigError: It has markers of a table that does not exist.
    """
    by_name = {table.name: table for table in tables}

    def made(match: re.Match[str]) -> str:
        if match["name"] not in by_name:
            raise ConfigError(f"{where}: no table {match['name']!r}; use one of {', '.join(by_name)}")
        return f"{match[1]}{by_name[match['name']].markdown()}{match[4]}"

    return _MARKED.sub(made, text)


def documents(root: Path) -> list[Path]:
    """List the Markdown documents of a checkout: those at its top, and those in `docs` and in `search_spaces`."""
    return sorted({*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("search_spaces/*.md")})
