"""Pictures of a sweep's saved views, as docs/views.md shows them: python tests/screenshots.py mrpc-small docs/img

The sweep's MLflow server must be running, and `chromium` be on the path.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from browser import NO_ASSISTANT, Browser, browser, chromium
from PIL import Image

from tune.store.folder import SweepFolder
from tune.tracking.publish import show

#: The end of a view's key → its height in pixels: what lies outside of the window is not drawn.
HEIGHTS = {"clo-vs-blo": 1700, "speed": 1500, "configurations": 1300, "summary": 1700}
DRAWN = "[...document.querySelectorAll('svg.main-svg')].map(svg => svg.outerHTML.length).join()"


def settle(page: Browser, seconds: float = 90.0) -> None:
    """Wait until charts are drawn and nothing has moved for three seconds."""
    deadline, since, before = time.monotonic() + seconds, time.monotonic(), ""
    while time.monotonic() < deadline and (not before or time.monotonic() - since < 3.0):
        time.sleep(0.5)
        now = page.evaluate(DRAWN)
        if now != before:
            since, before = time.monotonic(), now


def shrink(path: Path) -> None:
    """Reduce a picture to 256 colours, a third of its bytes.

    Not by Pillow's median cut, which goes by area: it turns the colour of a thin line into a mixture with its surroundings.
    """
    whole = Image.open(path).convert("RGB")
    whole.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE).save(path, optimize=True)


def main(sweep: str, folder: str) -> None:
    addresses = show(SweepFolder.find(sweep))["views"].values()
    with browser(chromium()) as page:
        page.before_each_page(NO_ASSISTANT)
        for name, height in HEIGHTS.items():
            page.size(1500, height)
            page.open(next(a for a in addresses if f".{name}&" in a))
            settle(page)
            page.screenshot(Path(folder) / f"view-{name}.png")
            shrink(Path(folder) / f"view-{name}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
