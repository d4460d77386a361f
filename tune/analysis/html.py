"""A self-contained HTML page: headings, text, tables and figures; it loads nothing from elsewhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from leebert.errors import StorageError
from leebert.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 1em 0; font-size: 14px; }
th, td { padding: .25em .8em; border-bottom: 1px solid #e4e4e4; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
.text td, .text th { text-align: left; white-space: normal; }
figure { margin: 1em 0; } figure img { max-width: 100%; } figcaption { color: #555; font-size: 14px; }
.wide { overflow-x: auto; }
"""


class HtmlPage:
    """Collects blocks in order; all text is escaped."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.blocks = [f"<h1>{html.escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        self.blocks.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, *lines: str) -> None:
        """One paragraph per line."""
        self.blocks += [f"<p>{html.escape(line)}</p>" for line in lines]

    def table(self, rows: Sequence[Iterable[object]], *, numbers: bool = True) -> None:
        """Add a table, the header first; columns after the first are right-aligned with `numbers`."""
        head, *body = ([html.escape(str(cell)) for cell in row] for row in rows)
        lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
        lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body]
        kind = "" if numbers else ' class="text"'
        self.blocks.append(f'<div class="wide"><table{kind}>' + "\n".join(lines) + "</table></div>")

    def figure(self, figure: Figure, caption: str) -> None:
        """Add a figure, as SVG within the page, with its caption."""
        import matplotlib as mpl

        drawn = io.BytesIO()
        with mpl.rc_context({"svg.hashsalt": "page"}):  # else two drawings of one figure differ in their ids
            figure.savefig(drawn, format="svg", metadata={"Date": None})
        image = base64.b64encode(drawn.getvalue()).decode()
        escaped = html.escape(caption)
        self.blocks.append(
            f'<figure><img src="data:image/svg+xml;base64,{image}" alt="{escaped}"><figcaption>{escaped}</figcaption></figure>'
        )

    def __str__(self) -> str:
        body = "\n".join(self.blocks)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(self.title)}</title>'
            f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
        )

    def write(self, path: Path) -> Path:
        """Write the page atomically, in place of an older one of this name. Raises StorageError."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, str(self))
        except OSError as error:
            raise StorageError(f"{path} can't be written: {error.strerror or error}") from None
        return path
