"""Fill the tables of pruning.md: `python docs/results/pruning.py [NAME=SWEEP ...]`.

A sweep (a name in the storage, or a folder) is first copied to pruning/NAME; all copies there are then simulated.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from marked import filled

from tune.running.recording import Recording
from tune.running.simulate import simulate

HERE = Path(__file__).parent
COPIES, PAGE = HERE / "pruning", HERE / "pruning.md"

#: What a row says → overrides of the space, trials at once, orders.
ROWS: dict[str, tuple[list[str], int, int]] = {
    "`racing` (alpha 0.1)": (["pruner.name=racing"], 1, 200),
    "`racing`, 2 trials at once": (["pruner.name=racing"], 2, 200),
    "`racing`, 4 trials at once": (["pruner.name=racing"], 4, 200),
    "`racing`, 8 trials at once": (["pruner.name=racing"], 8, 200),
    "`racing`, searcher `tpe`": (["pruner.name=racing", "searcher.name=tpe"], 1, 50),
    "`racing`, alpha 0.01": (["pruner.name=racing", "pruner.alpha=0.01"], 1, 200),
    "`racing`, alpha 0.05": (["pruner.name=racing", "pruner.alpha=0.05"], 1, 200),
    "`racing`, alpha 0.2": (["pruner.name=racing", "pruner.alpha=0.2"], 1, 200),
    "`halving` (eta 3, from 1 epoch)": (["pruner.name=halving"], 1, 200),
    "`halving`, eta 2": (["pruner.name=halving", "pruner.eta=2"], 1, 200),
    "`halving`, eta 2, from 4 epochs": (["pruner.name=halving", "pruner.eta=2", "pruner.min_epochs=4"], 1, 200),
}


def table(recording: Recording) -> Iterator[str]:
    """One record's table in Markdown, below a line about the record."""
    scores = sorted((100 * c.score for c in recording.configurations), reverse=True)
    shown = ", ".join(f"{score:.2f}" for score in scores)
    yield f"{len(scores)} configurations, {recording.left_out} left out; full scores {shown}."
    yield ""
    yield "| pruner | fold-epochs spent | sd | pruned | points below the best (mean) | 95th percentile | best selected |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for label, (overrides, concurrent, orders) in ROWS.items():
        searcher = ["searcher.name=random"] if not any("searcher" in o for o in overrides) else []
        spec = recording.spec([*searcher, *overrides])
        yield row(label, simulate(recording, spec, orders=orders, concurrent=concurrent).as_dict())


def row(label: str, summary: dict[str, Any]) -> str:
    """One simulation."""
    spent, regret = summary["spent_pct"], summary["regret_points"]
    return (
        f"| {label} | {spent['mean']:.1f} % | {spent['sd']:.1f} | {summary['pruned']:.1f} | {regret['mean']:.3f} "
        f"| {regret['p95']:.2f} | {summary['best_picked_pct']:.0f} % |"
    )


def main() -> None:
    for name, _, sweep in (argument.partition("=") for argument in sys.argv[1:]):
        Recording.find(sweep).save(COPIES / name)
    page = PAGE.read_text()
    for name in re.findall(r"<!-- table (\w+) -->", page):
        if (COPIES / name).is_dir():
            page = filled(page, name, "\n".join(table(Recording.find(str(COPIES / name)))))
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
