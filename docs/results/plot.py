"""Draw docs/results/mrpc-small.png from a sweep's folder and a refitted model's evaluation.json.

python docs/results/plot.py sweeps/mrpc-small docs/results/mrpc-small-dev.json docs/results/mrpc-small.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from tune.analysis.labels import algorithm_colour, algorithm_label
from tune.store.folder import SweepFolder

COLOURS_OF_CRITERIA = ("#00855f", "#2272b4", "#de7921", "#8a4fb0", "#c0392b", "#5a5a5a")


def main(sweep: str, evaluation: str, out: str) -> None:
    """Left: cross-validated score of each exit, by method. Right: score against mean exit layer on dev, best model."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
    history = [c for c in SweepFolder.find(sweep).ledger.read().history() if c.state == "complete"]
    algorithms = sorted({c.values["algorithm"] for c in history}, reverse=True)
    for shift, algorithm in enumerate(algorithms):
        curves = 100 * np.array(
            [[cell.best.exits for cell in c.cells if cell.best] for c in history if c.values["algorithm"] == algorithm]
        )  # (configurations, cells, exits)
        by_configuration = curves.mean(axis=1)
        layers = np.arange(1, curves.shape[2] + 1) + 0.06 * (shift - 0.5)
        mean = by_configuration.mean(axis=0)
        spread = np.abs(np.stack([by_configuration.min(axis=0), by_configuration.max(axis=0)]) - mean)
        left.errorbar(
            layers,
            mean,
            yerr=spread,
            color=algorithm_colour(algorithm),
            marker="o",
            capsize=3,
            label=algorithm_label(algorithm),
        )
    left.set(xlabel="exit layer", ylabel="cross-validated score, per cent", title="Mean and range over configurations")
    left.legend()
    result = json.loads(Path(evaluation).read_text())["splits"]["dev"]
    for (criterion, points), colour in zip(result["curves"].items(), COLOURS_OF_CRITERIA, strict=False):
        right.plot(
            [p["layers"] for p in points],
            [100 * p["measures"]["score"] for p in points],
            color=colour,
            marker=".",
            label=criterion,
        )
    exits = result["exits"]["score"]
    right.plot(
        range(1, len(exits) + 1),
        [100 * s for s in exits],
        color="#8c8c8c",
        ls=":",
        marker="s",
        ms=4,
        label="one exit for all samples",
    )
    right.set(
        xlabel="mean exit layer",
        ylabel="dev score, per cent",
        title="CLO-v2 refitted (seed 0), on dev",
    )
    right.legend()
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    main(*sys.argv[1:])
