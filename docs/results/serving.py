"""Fill the tables of serving.md from the kept results of `benchmarks/serving.py`.

python docs/results/serving.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from marked import filled

HERE = Path(__file__).parent
PAGE, KEPT = HERE / "serving.md", HERE / "serving"


def table(figures: dict[str, float]) -> str:
    """One row per variant: score, mean exit layer, p50-like mean and p99 at batch size 1, texts per second at 32, memory."""
    names = [key.removesuffix(": score") for key in figures if key.endswith(": score")]
    rows = [
        "| variant | score | mean exit layer | batch 1, ms per text | p99 | batch 32, texts/s | memory, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in names:
        memory = figures.get(f"{name.partition(':')[0]}: memory")
        rows.append(
            f"| {name} | {figures[f'{name}: score']:.1f} | {figures[f'{name}: mean exit layer']:.2f} | "
            f"{figures[f'batch 1: {name}']:.2f} | {figures[f'batch 1: {name}: p99']:.1f} | "
            f"{1000 / figures[f'batch 32: {name}']:.0f} | {f'{memory:.0f}' if memory else '–'} |"
        )
    return "\n".join(rows)


def aims(targets: dict[str, dict[str, Any]]) -> str:
    """The ratios against their aims."""
    rows = ["| ratio | measured | aim |", "| --- | ---: | ---: |"]
    for name, one in targets.items():
        rows.append(f"| {name} | {one['value']:.2f} | {'≥' if one['least'] else '≤'} {one['limit']:g} |")
    return "\n".join(rows)


def main() -> None:
    page = PAGE.read_text()
    for file in sorted(KEPT.glob("*-thread*.jsonl")):
        kept = json.loads(file.read_text().splitlines()[-1])
        page = filled(page, file.stem, f"{table(kept['figures'])}\n\n{aims(kept['targets'])}")
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
