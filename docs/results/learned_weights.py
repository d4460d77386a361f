"""Keep the epochs of a sweep of `benchmarks/learned_weights.yaml`, and fill the page learned_weights.md from what is kept.

python docs/results/learned_weights.py keep sweeps/weights-sst2-noisy
python docs/results/learned_weights.py draw
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd

mpl.use("Agg")
import matplotlib.pyplot as plt
from marked import filled

from tune.analysis.labels import algorithm_colour, algorithm_label
from tune.analysis.stats import corrected_t

HERE = Path(__file__).parent
PAGE, RUNS, PICTURE = HERE / "learned_weights.md", HERE / "learned_weights", HERE / "learned_weights" / "epochs.png"
FREE = RUNS / "free.png"
#: Sweeps of `benchmarks/free_weights.yaml`, whose weights are drawn and whose scores are not compared.
UNBOUND = {"free-weights-adam": "Adam, λ2 = 0.1", "free-weights-sgd": "SGD, λ2 = 1"}
CONTROL = "uniform-d1"
METHODS = (CONTROL, "clo-v2", "blo", "hyper-v2")


def keep(folder: Path) -> None:
    """Write one row per epoch of a sweep's complete configurations: scores of the exits and their cross-entropies' weights."""
    from tune.store.folder import SweepFolder

    state = SweepFolder(folder).ledger.read()
    rows = [
        {
            "algorithm": c.values["algorithm"],
            "lr_omega": c.values.get("lr_omega", np.nan),
            "parametrisation": c.values.get("parametrisation", ""),
            "seed": cell.seed,
            "fold": cell.fold,
            "epoch": epoch + 1,
            "score": record["score"],
            "best": epoch == cell.best.epoch,
            "exits": record["exits"]["score"],
            "ce": record["weights"]["ce"],
        }
        for c in state.history()
        if c.state == "complete"
        for cell in c.cells
        for epoch, record in sorted(state.epochs[c.id, cell.seed, cell.fold].items())
    ]
    RUNS.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_parquet(RUNS / f"{folder.name}.parquet", index=False)


def table(runs: pd.DataFrame) -> Iterator[str]:
    """The differences from uniform weights on the same batches, of the best epochs and of the last."""
    folds = runs.fold.nunique()
    yield "| method | λ2 | score | minus uniform | last epoch: score | minus uniform | weight of the cross-entropies there |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    last = runs[runs.epoch == runs.epoch.max()]
    control = [part[part.algorithm == CONTROL].set_index(["seed", "fold"]).score for part in (runs[runs.best], last)]
    for (algorithm, rate), part in runs.groupby(["algorithm", runs.lr_omega.fillna(0)], sort=False):
        cells = []
        for of, uniform in zip((part[part.best], part[part.epoch == runs.epoch.max()]), control, strict=True):
            scores = of.set_index(["seed", "fold"]).score
            cells.append(f"{100 * scores.mean():.2f}")
            interval = corrected_t((scores - uniform).dropna().to_list(), 1 / (folds - 1))
            bounds = f"{100 * interval.mean:+.2f} ({100 * interval.low:.2f} to {100 * interval.high:.2f})".replace(
                "-", "−"
            )
            significant = interval.low > 0 or interval.high < 0
            cells.append("–" if algorithm == CONTROL else f"**{bounds}**" if significant else bounds)
        ce = np.mean(np.stack(part[part.epoch == runs.epoch.max()].ce))
        yield f"| {algorithm_label(algorithm)} | {rate or '–'} | {' | '.join(cells)} | {ce:.2f} |"


def draw(files: list[Path]) -> None:
    """Draw, for each sweep, validation score and mean weight of the cross-entropies over the epochs, at the largest λ2."""
    figure, axes = plt.subplots(len(files), 2, figsize=(10, 3.4 * len(files)), constrained_layout=True, squeeze=False)
    for row, file in zip(axes, files, strict=True):
        runs = pd.read_parquet(file)
        runs["weight"] = [np.mean(ce) for ce in runs.ce]
        chosen = runs[(runs.algorithm == CONTROL) | (runs.lr_omega == runs.lr_omega.max())]
        for algorithm in METHODS:
            part = chosen[chosen.algorithm == algorithm]
            if part.empty:
                continue
            for axis, column, factor in ((row[0], "score", 100), (row[1], "weight", 1)):
                by_epoch = part.groupby("epoch")[column].agg(["mean", "min", "max"]) * factor
                style = {"color": algorithm_colour(algorithm), "label": algorithm_label(algorithm)}
                axis.plot(by_epoch.index, by_epoch["mean"], **style)
                axis.fill_between(
                    by_epoch.index, by_epoch["min"], by_epoch["max"], color=style["color"], alpha=0.12, lw=0
                )
        row[0].set(title=file.stem, xlabel="epoch", ylabel="validation score (%), mean over exits")
        row[1].set(title="λ2 = 0.1", xlabel="epoch", ylabel="mean weight of an exit's cross-entropy")
        row[0].legend(frameon=False)
        for axis in row:
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.3)
    figure.savefig(PICTURE, dpi=110)


def draw_free(files: list[Path]) -> None:
    """Draw the weight of each exit's cross-entropy over the epochs, a column per parametrisation, a row per optimiser of ω."""
    tables = [pd.read_parquet(file) for file in files]
    names = list(dict.fromkeys(tables[0].parametrisation))
    figure, axes = plt.subplots(
        len(files),
        len(names),
        figsize=(2.6 * len(names), 2.9 * len(files)),
        constrained_layout=True,
        squeeze=False,
        sharex=True,
    )
    for row, file, runs in zip(axes, files, tables, strict=True):
        for axis, name in zip(row, names, strict=True):
            for algorithm in METHODS[1:]:
                part = runs[(runs.algorithm == algorithm) & (runs.parametrisation == name)].sort_values("epoch")
                weights = np.stack(part.ce)  # (epochs, M)
                colour = algorithm_colour(algorithm)
                axis.plot(part.epoch, weights, color=colour, alpha=0.25, lw=0.8)
                axis.plot(part.epoch, weights.mean(axis=1), color=colour, lw=2, label=algorithm_label(algorithm))
            axis.axhline(1, color="#999999", lw=0.8, ls=":")
            axis.set_title(name)
            axis.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(f"{UNBOUND[file.stem]}\nweight of a cross-entropy")
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(FREE, dpi=110)


def fill() -> None:
    """Write the tables into the page and draw the pictures."""
    files = sorted(file for file in RUNS.glob("*.parquet") if file.stem not in UNBOUND)
    if unbound := [file for name in UNBOUND if (file := RUNS / f"{name}.parquet").exists()]:
        draw_free(unbound)
    page = PAGE.read_text()
    for file in files:
        page = filled(page, file.stem, "\n".join(table(pd.read_parquet(file))))
    PAGE.write_text(page)
    draw(files)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["keep", *folders]:
            for folder in folders:
                keep(Path(folder))
        case ["draw"]:
            fill()
        case _:
            sys.exit(__doc__)
