"""A self-contained HTML page: headings, text, tables and interactive charts; it loads nothing from elsewhere.

The page carries the chart library, compressed (docs/decisions/pages.md).
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import gzip
import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from leebert.errors import StorageError
from leebert.files import write_atomically

_TEMPLATES = Path(__file__).parent / "templates"


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart as plotly draws it.

    Attributes:
        data: Its traces, JSON-ready. `#rrggbb` and `#rrggbbaa` are colours, which a dark page lightens where necessary;
            `$text`, `$soft`, `$line`, `$panel` and `$back` are those of the page.
        layout: Its layout, likewise.
        height: Its height in pixels.
    """

    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    height: int = 420


@dataclasses.dataclass(frozen=True)
class Figure:
    """A chart in a page, with its caption."""

    id: int
    caption: str
    height: int


@dataclasses.dataclass(frozen=True)
class Block:
    """One block of a page; which fields it has depends on its kind."""

    kind: Literal["heading", "text", "verdict", "table", "figures"]
    text: str = ""
    id: str = ""
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    numbers: bool = True
    figures: Sequence[Figure] = ()


class HtmlPage:
    """Collects blocks in order; all text is escaped."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.blocks: list[Block] = []
        self.charts: list[Chart] = []

    def heading(self, text: str) -> None:
        """Add a heading, which the table of contents lists."""
        self.blocks.append(Block("heading", text, id=f"part-{len(self.blocks)}"))

    def text(self, *lines: str) -> None:
        """Add one paragraph per line."""
        self.blocks += [Block("text", line) for line in lines]

    def verdict(self, sentence: str) -> None:
        """Add a sentence that stands out."""
        self.blocks.append(Block("verdict", sentence))

    def table(self, rows: Sequence[Iterable[object]], *, numbers: bool = True) -> None:
        """Add a table, the header first; columns after the first are right-aligned with `numbers`."""
        head, *body = ([str(cell) for cell in row] for row in rows)
        self.blocks.append(Block("table", head=head, rows=body, numbers=numbers))

    def figure(self, *charts: tuple[Chart, str]) -> None:
        """Add charts, side by side where the window is wide enough, each with its caption."""
        figures = []
        for chart, caption in charts:
            figures.append(Figure(len(self.charts), caption, chart.height))
            self.charts.append(chart)
        self.blocks.append(Block("figures", figures=figures))

    def __str__(self) -> str:
        charts = {str(i): {"data": chart.data, "layout": chart.layout} for i, chart in enumerate(self.charts)}
        # "<" could end the script element; in JSON strings its escape means the same.
        plain = json.dumps(charts, allow_nan=False).replace("<", "\\u003c") if charts else ""
        return str(
            _template().render(
                title=self.title,
                blocks=self.blocks,
                charts=plain,
                library=library() if charts else "",
                style=_file("page.css"),
                script=_file("page.js"),
            )
        )

    def write(self, path: Path) -> Path:
        """Write the page atomically, in place of an older one of this name. Raises StorageError."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, str(self))
        except OSError as error:
            raise StorageError(f"{path} can't be written: {error.strerror or error}") from None
        return path


@functools.cache
def library() -> str:
    """Return plotly's script, compressed by gzip, in base64: 2.0 MB instead of 4.8 MB."""
    package = importlib.util.find_spec("plotly")
    assert package is not None
    assert package.origin is not None
    script = Path(package.origin).parent / "package_data" / "plotly.min.js"  # without importing plotly
    return base64.b64encode(gzip.compress(script.read_bytes(), mtime=0)).decode()


@functools.cache
def _file(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


@functools.cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(_file("page.html"))
