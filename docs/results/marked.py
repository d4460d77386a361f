"""Fill the marked places of a results page: what stands between `<!-- table NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import re


def filled(page: str, name: str, text: str) -> str:
    """Replace what is marked by a name.

    Args:
        page: The page.
        name: The name; if the page has no such mark, it does not change.
        text: The new text, without a newline at its end.
    """
    pattern = rf"(<!-- table {re.escape(name)} -->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda found: f"{found[1]}{text}\n{found[2]}", page, flags=re.DOTALL)
