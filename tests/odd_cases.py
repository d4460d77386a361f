"""Pictures of reports on odd sweeps, as docs/decisions/pages.md shows them: python tests/odd_cases.py docs/img/odd [NAME ...]

`chromium` must be on the path.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from browser import Browser, browser, chromium
from PIL import Image
from scored_sweep import scored_sweep
from screenshots import settle

from tune.analysis.report import sweep_page
from tune.store.folder import SweepFolder

#: The largest picture, in bytes.
MOST_BYTES = 60_000

#: A sweep's name of 80 characters, without a place where it could be broken.
LONG = "a_sweep_whose_name_has_eighty_characters_and_no_place_at_which_it_could_be_broken"[:80]


def score(values: dict[str, Any], seed: int, fold: int) -> float:
    rng = np.random.default_rng([seed, fold, len(str(values))])
    return 0.6 + 0.02 * (values["algorithm"] == "clo-v2") + 0.01 * float(rng.normal())


def failed(values: Any) -> str:
    return "failed"


#: Options of which every configuration has its own values, so that its name has more than 80 characters.
MANY_OPTIONS = {
    "lr_theta": [1e-5, 2.5e-5], "lr_omega": [1e-4, 2.5e-4], "cycle_length": [2, 4], "weight_decay": [0.01, 0.02],
    "exit_dropout": [0.1, 0.2], "omega_optimizer": ["adam", "sgd"], "distillation": ["cross_entropy", "kl"],
}  # fmt: skip


def only_ends(values: Any) -> str:
    """Complete if the places of all values in their lists are equal, else not begun."""
    places = {MANY_OPTIONS[option].index(value) for option, value in values.items() if option in MANY_OPTIONS}
    return "complete" if len(places) == 1 else ""


#: Name → how the sweep differs from that of `scored_sweep`, and the width of the window, light or dark.
CASES: dict[str, tuple[dict[str, Any], int, bool]] = {
    "24-exits": ({"exits": 24, "seeds": [0, 1]}, 1440, False),
    "200-configurations": (
        {"seeds": [0, 1], "space": {"lr_theta": [i * 1e-6 for i in range(1, 68)], "cycle_length": [2, 4]}}, 1440, True,
    ),
    "name-of-80-characters": ({"seeds": [0, 1]}, 1920, False),
    "one-configuration": (
        {"algorithms": ["clo-v2"], "seeds": [0, 1], "space": {"lr_theta": [1e-5], "cycle_length": [4]}}, 1440, False,
    ),
    "one-run": (
        {"folds": 1, "seeds": [0], "space": {"lr_theta": [1e-5], "cycle_length": [4]}, "facts": {"test_train_ratio": 1 / 9}},
        1440, True,
    ),
    "labels-of-80-characters": ({"seeds": [0, 1], "space": MANY_OPTIONS, "state": only_ends}, 1440, False),
    "failed-runs-only": ({"state": failed}, 1440, False),
}  # fmt: skip


def picture(page: Browser, html: Path, to: Path, width: int, dark: bool) -> None:
    """Take a picture of a page's first 1,500 pixels, with as many colours as fit into :data:`MOST_BYTES`."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    page.call("Emulation.setEmulatedMedia", features=[scheme])
    page.size(width, 1500)
    page.open(f"file://{html}")
    settle(page, 30)
    page.screenshot(to)
    whole = Image.open(to).convert("RGB")
    for colours, size in ((64, 1.0), (32, 1.0), (32, 0.75), (16, 0.75), (16, 0.5)):
        smaller = whole.resize((int(size * whole.width), int(size * whole.height)), Image.Resampling.LANCZOS)
        smaller.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE).save(
            to, optimize=True
        )
        if to.stat().st_size <= MOST_BYTES:
            return


def main(folder: str, *names: str) -> None:
    made: Callable[..., SweepFolder] = scored_sweep
    Path(folder).mkdir(parents=True, exist_ok=True)
    with browser(chromium()) as page, tempfile.TemporaryDirectory() as scratch:
        for name, (change, width, dark) in ((name, CASES[name]) for name in names or CASES):
            sweep = made(Path(scratch) / (LONG if name.startswith("name-") else name), score, **change)
            html = Path(scratch) / f"{name}.html"
            html.write_text(str(sweep_page(sweep)))
            picture(page, html, Path(folder) / f"{name}.png", width, dark)


if __name__ == "__main__":
    main(*sys.argv[1:])
