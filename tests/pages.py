"""Pages by their outline: which blocks stand under which heading."""

from __future__ import annotations

from itertools import groupby

from tune.analysis.html import HtmlPage

_KINDS = {"<p": "text", "<d": "table", "<f": "figure"}


def outline(page: HtmlPage) -> dict[str, str]:
    """The kinds of blocks under each heading, in order: `{"Best": "3 text, table, text"}` for three paragraphs and so on."""
    kinds: dict[str, list[str]] = {}
    under: list[str] = []
    for block in page.blocks[1:]:
        if block.startswith("<h2>"):
            under = kinds.setdefault(block.removeprefix("<h2>").removesuffix("</h2>"), [])
        else:
            under.append(_KINDS[block[:2]])

    def counted(of: list[str]) -> str:
        runs = [(kind, len(list(run))) for kind, run in groupby(of)]
        return ", ".join(kind if n == 1 else f"{n} {kind}" for kind, n in runs)

    return {heading: counted(of) for heading, of in kinds.items()}
