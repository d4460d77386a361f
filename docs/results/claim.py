"""Keep what `compare` says about the sweeps of `benchmarks/claim.py`, and fill the page claim.md from what is kept.

python docs/results/claim.py keep sweeps
python docs/results/claim.py draw
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from marked import filled

from tune.analysis.labels import algorithm_colour, algorithm_label

HERE = Path(__file__).parent
PAGE, KEPT, PICTURE = HERE / "claim.md", HERE / "claim" / "differences.json", HERE / "claim" / "differences.png"
PROGRAM = str(Path(sys.executable).with_name("leebert-tune"))
#: A − B.
PAIRS = (
    *((method, "uniform-d1") for method in ("slo", "blo", "clo-v1", "clo-v2", "hyper-v2")),
    ("clo-v2", "blo"),
)


def keep(storage: Path) -> None:
    """Write what `compare` says about each pair on the tasks' sweeps together."""
    names = sorted(folder.name for folder in storage.glob("claim-*") if folder.is_dir())
    kept = []
    for a, b in PAIRS:
        command = [PROGRAM, "compare", *names, "--a", a, "--b", b, "--json", "--storage", str(storage)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")
        kept.append({"a": a, "b": b, **json.loads(done.stdout)})
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps(kept, indent=1) + "\n")


def points(difference: dict[str, Any]) -> str:
    """A difference in points with its interval, bold if the interval excludes 0."""
    if difference["low"] is None:
        return f"{100 * difference['mean']:+.2f}".replace("-", "−")
    text = f"{100 * difference['mean']:+.2f} ({100 * difference['low']:.2f} to {100 * difference['high']:.2f})"
    significant = difference["low"] > 0 or difference["high"] < 0
    return (f"**{text}**" if significant else text).replace("-", "−")


def table(kept: list[dict[str, Any]]) -> Iterator[str]:
    """One row per task, one column per pair; the mean over tasks is the last row."""
    yield f"| task | runs each | {' | '.join(pair(one) for one in kept)} |"
    yield f"| --- | ---: | {' | '.join('---:' for _ in kept)} |"
    for index, sweep in enumerate(kept[0]["sweeps"]):
        cells = [points(one["sweeps"][index]["pooled"]["difference"]) for one in kept]
        runs = sweep["pooled"]["difference"]["cells"]
        yield f"| {sweep['sweep'].removeprefix('claim-')} | {runs} | {' | '.join(cells)} |"
    if kept[0]["across"]:
        cells = [points(one["across"][0]["difference"]) for one in kept]
        yield f"| mean over tasks | | {' | '.join(cells)} |"


def detectable(kept: list[dict[str, Any]]) -> Iterator[str]:
    """The difference that each comparison would have detected with a probability of 80 %, in points."""
    yield f"| task | {' | '.join(pair(one) for one in kept)} |"
    yield f"| --- | {' | '.join('---:' for _ in kept)} |"
    for index, sweep in enumerate(kept[0]["sweeps"]):
        powers = [one["sweeps"][index]["verdict"]["power"] for one in kept]
        cells = [f"{100 * power['detectable']:.2f}" if power and power["detectable"] else "–" for power in powers]
        yield f"| {sweep['sweep'].removeprefix('claim-')} | {' | '.join(cells)} |"


def pair(one: dict[str, Any]) -> str:
    """A − B by their labels."""
    return f"{algorithm_label(one['a'])} − {algorithm_label(one['b'])}"


def draw(kept: list[dict[str, Any]]) -> None:
    """Draw the differences by task, a panel per pair."""
    tasks = [sweep["sweep"].removeprefix("claim-") for sweep in kept[0]["sweeps"]]
    figure, axes = plt.subplots(
        1, len(kept), figsize=(2.6 * len(kept), 0.45 * len(tasks) + 1.3), sharey=True, constrained_layout=True
    )
    for axis, one in zip(axes, kept, strict=True):
        colour = algorithm_colour(one["a"])
        for height, sweep in enumerate(reversed(one["sweeps"])):
            difference = sweep["pooled"]["difference"]
            axis.plot(100 * difference["mean"], height, "o", color=colour)
            if difference["low"] is not None:
                axis.plot([100 * difference["low"], 100 * difference["high"]], [height, height], color=colour, lw=2)
        axis.axvline(0, color="#999999", lw=0.8)
        axis.set_title(pair(one).replace(" − ", " −\n"), fontsize=9)
        axis.set_xlabel("points")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(tasks)), list(reversed(tasks)))
    figure.savefig(PICTURE, dpi=110)


def fill() -> None:
    """Write the tables into the page and draw the picture."""
    kept = json.loads(KEPT.read_text())
    page = filled(PAGE.read_text(), "differences", "\n".join(table(kept)))
    PAGE.write_text(filled(page, "detectable", "\n".join(detectable(kept))))
    draw(kept)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["keep", folder]:
            keep(Path(folder))
        case ["draw"]:
            fill()
        case _:
            sys.exit(__doc__)
