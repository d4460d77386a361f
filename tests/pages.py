"""Pages by their outline: which blocks stand under which heading."""

from __future__ import annotations

from itertools import groupby

from tune.analysis.html import HtmlPage


def outline(page: HtmlPage) -> dict[str, str]:
    """The kinds of blocks under each heading, in order: `{"Best": "3 text, table, text"}` for three paragraphs and so on.

    What stands before the first heading is under "".
    """
    kinds: dict[str, list[str]] = {}
    under: list[str] = kinds.setdefault("", [])
    for block in page.blocks:
        if block.kind == "heading":
            under = kinds.setdefault(block.text, [])
        else:
            under.append(f"{len(block.figures)} figures" if len(block.figures) > 1 else block.kind.removesuffix("s"))

    def counted(of: list[str]) -> str:
        runs = [(kind, len(list(run))) for kind, run in groupby(of)]
        return ", ".join(kind if n == 1 else f"{n} {kind}" for kind, n in runs)

    return {heading: counted(of) for heading, of in kinds.items()}
