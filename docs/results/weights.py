"""Fill the tables and draw the picture of weights.md from weights/runs.parquet: `python docs/results/weights.py`.

`benchmarks/weights.py` writes the Parquet file. Methods and options that it holds appear without a change here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

from leebert.data.synthetic.known_weights import PROBLEMS
from leebert.methods import METHODS
from tune.analysis.labels import algorithm_colour, algorithm_label

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / "benchmarks"), str(HERE)]
import weights as benchmark  # noqa: E402  (the benchmark, not this file)
from marked import filled  # noqa: E402

PAGE, RUNS, PICTURE = HERE / "weights.md", HERE / "weights" / "runs.parquet", HERE / "weights" / "marked.png"
BIAS = HERE / "weights" / "hypergradient.json"  # by benchmarks/hypergradient.py
DEFAULT = "exit_softmax"
#: Drawn beside the methods at their defaults.
DRAWN = ("hyper", {"outer": "ce"})
#: Fewer seeds than these have no interval.
FEW = 5

#: A method with the options of its runs, as JSON.
Variant = tuple[str, str]


def variants(rows: benchmark.Rows, select: Callable[[Variant], bool]) -> list[Variant]:
    """Return the selected methods and options of the runs, in the order of `leebert methods`."""
    pairs = {(r["algorithm"], r["options"]) for r in rows.rows if r["fixed"] is None}
    chosen = [pair for pair in pairs if pair != (benchmark.CONTROL, "{}") and select(pair)]
    order = [*(name for name, _ in benchmark.UNIFORM), *(name for name, _ in benchmark.METHODS), "hyper", *METHODS]
    return sorted(chosen, key=lambda pair: (order.index(pair[0]), pair[1]))


def at_rate(rows: benchmark.Rows, rate: float) -> Callable[[Variant], bool]:
    """Select what ran at a λ2, other parametrisations than the default's only where they ran on more than :data:`SHAPED`.

    Methods without λ2 are in the table of the larger one.
    """

    def select(variant: Variant) -> bool:
        options = json.loads(variant[1])
        everywhere = any(rows.of(p, *variant) for p in PROBLEMS if p not in benchmark.SHAPED)
        return options.get("lr_omega", benchmark.RATES[-1]) == rate and (
            parametrisation(options) == DEFAULT or everywhere
        )

    return select


def parametrisation(options: dict[str, object]) -> str:
    return str(options.get("parametrisation", DEFAULT))


def named(variant: Variant, shape: bool = False) -> str:
    """Return a row's name in a table."""
    options = json.loads(variant[1])
    parametrisation = options.pop("parametrisation", DEFAULT)
    notes = [f"`{k}` {v}" for k, v in options.items() if k != "lr_omega"]
    if shape or parametrisation != DEFAULT:
        notes.insert(0, f"`{parametrisation}`")
    return ", ".join([algorithm_label(variant[0]), *notes])


def difference(rows: benchmark.Rows, problem: str, variant: Variant, fixed: float | None = None) -> str:
    """Return a cell: points from uniform weights with half the 95 % interval, bold if significant; or the few seeds."""
    interval = rows.difference(problem, *variant, fixed=fixed)
    if 0 < interval.cells < FEW:
        return f"{100 * interval.mean:+.1f} ({interval.cells})".replace("-", "−")
    text = benchmark.shown(interval).replace("-", "−").replace("±", "± ")
    significant = interval.defined and (interval.low > 0 or interval.high < 0)
    return f"**{text}**" if significant else text if text != "−" else "–"


def header(first: str) -> Iterator[str]:
    yield f"| {first} | " + " | ".join(f"`{p}`" for p in PROBLEMS) + " |"
    yield "| --- |" + " ---: |" * len(PROBLEMS)


def problems(rows: benchmark.Rows) -> Iterator[str]:
    """The problems, their uniform score and their best fixed weight."""
    yield "| problem | what it is | known terms | score | uniform | best fixed weight of these terms | gain, points |"
    yield "| --- | --- | --- | --- | ---: | ---: | ---: |"
    for name, problem in PROBLEMS.items():
        scores = list(rows.scores(name, benchmark.CONTROL).values())
        best = rows.best_fixed(name)
        gain = "–" if best is None else difference(rows, name, (benchmark.CONTROL, "{}"), best)
        metric = "macro F1" if problem.metric == "macro_f1" else problem.metric
        yield (
            f"| `{name}` | {problem.title.replace('|', chr(92) + '|')} | {problem.worth} | {metric} | {100 * np.mean(scores):.1f} "
            f"| {'–' if best is None else f'{best:g}'} | {gain} |"
        )


def compared(rows: benchmark.Rows, rate: float) -> Iterator[str]:
    """Differences from uniform weights at one λ2."""
    yield from header("points from uniform weights")
    if rate == benchmark.RATES[-1]:
        fixed = {p: rows.best_fixed(p) for p in PROBLEMS}
        control = (benchmark.CONTROL, "{}")
        best = ["–" if w is None else difference(rows, p, control, w) for p, w in fixed.items()]
        yield "| best fixed weight | " + " | ".join(best) + " |"
    for variant in variants(rows, at_rate(rows, rate)):
        cells = [difference(rows, p, variant) for p in PROBLEMS]
        yield f"| {named(variant)} | " + " | ".join(cells) + " |"


def ends(rows: benchmark.Rows, rate: float) -> Iterator[str]:
    """Where the weights ended: marked terms / cross-entropies of the scored exits."""
    yield from header("mean weight at the end")
    for variant in variants(rows, at_rate(rows, rate)):
        cells = []
        for name, problem in PROBLEMS.items():
            ended = rows.of(name, *variant)
            ce = [np.mean(np.asarray(r["weights"])[list(problem.scored)]) for r in ended]
            cells.append(f"{np.mean([r['marked'] for r in ended]):.2f} / {np.mean(ce):.2f}" if ended else "–")
        yield f"| {named(variant)} | " + " | ".join(cells) + " |"


def shapes(rows: benchmark.Rows) -> Iterator[str]:
    """Differences from uniform weights by parametrisation, on the problems on which several were compared."""
    large = benchmark.RATES[-1]
    chosen = [
        (method, options)
        for method, options in variants(rows, lambda variant: variant[0] in benchmark.SHAPED_METHODS)
        if (read := json.loads(options)).get("lr_omega") == large and read.keys() <= {"lr_omega", "parametrisation"}
    ]
    columns = benchmark.SHAPED
    yield "| method, parametrisation | " + " | ".join(f"`{p}`, points | its terms' weight" for p in columns) + " |"
    yield "| --- |" + " ---: |" * (2 * len(columns))
    for variant in chosen:
        cells = []
        for p in columns:
            marked = [r["marked"] for r in rows.of(p, *variant)]
            cells += [difference(rows, p, variant), f"{np.mean(marked):.2f}".replace("-", "−") if marked else "–"]
        yield f"| {named(variant, shape=True)} | " + " | ".join(cells) + " |"


def bias() -> Iterator[str]:
    """The one-step hypergradient against unrolled differentiation, and finite differences against autograd."""
    figures = json.loads(BIAS.read_text().splitlines()[-1])["figures"]
    named = [key.partition(": ") for key in figures]
    names = list(dict.fromkeys(name for name, _, _ in named))
    yield "| | " + " | ".join(f"`{name}`" for name in names) + " |"
    yield "| --- |" + " ---: |" * len(names)
    for figure in dict.fromkeys(figure for _, _, figure in named):
        cells = [f"{figures[f'{name}: {figure}']:.{5 if 'error' in figure else 2}f}" for name in names]
        yield f"| {figure} | " + " | ".join(cells) + " |"


def draw(rows: benchmark.Rows) -> None:
    """Draw the mean weight of the known terms over the epochs, with the range over seeds."""
    figure, axes = plt.subplots(2, 4, figsize=(12, 5.6), constrained_layout=True, sharey=True)
    drawn = {(method, benchmark.at_rate(benchmark.RATES[-1], own)) for method, own in (*benchmark.METHODS, DRAWN)}
    chosen = [variant for variant in variants(rows, at_rate(rows, benchmark.RATES[-1])) if variant in drawn]
    for axis, (name, problem) in zip(axes.flat, PROBLEMS.items(), strict=False):
        for place, variant in enumerate(chosen):
            runs = rows.of(name, *variant)
            if not runs:
                continue
            epochs = np.array([0, *runs[0]["epochs"]])
            path = np.array([[1.0, *r["path"]] for r in runs])
            style = {
                "color": algorithm_colour(variant[0]),
                "ls": ("-", "--", ":", "-.")[place % 4],
                "lw": 3.2 - 0.25 * place,
            }
            axis.plot(epochs, path.mean(axis=0), label=named(variant).replace("`", ""), **style)
            axis.fill_between(epochs, path.min(axis=0), path.max(axis=0), color=style["color"], alpha=0.12, lw=0)
        axis.axhline(1, color="#8c8c8c", lw=0.8)
        axis.set(title=f"{name} ({problem.worth} terms)", ylim=(-0.1, 4.1))
        axis.title.set_fontsize(10)
    for axis in axes[:, 0]:
        axis.set_ylabel("mean weight")
    for axis in axes.flat[3:]:
        axis.set_xlabel("epoch")
    last = axes.flat[-1]
    last.axis("off")
    last.legend(*axes.flat[0].get_legend_handles_labels(), loc="center", frameon=False)
    figure.savefig(PICTURE, dpi=80)


def rendered(page: str, rows: benchmark.Rows) -> str:
    """Return the page with the tables of these runs."""
    large, small = benchmark.RATES[-1], benchmark.RATES[0]
    tables = {
        "problems": problems(rows),
        "scores": compared(rows, large),
        "ends": ends(rows, large),
        "small": compared(rows, small),
        "shapes": shapes(rows),
        "bias": bias(),
    }
    for name, lines in tables.items():
        page = filled(page, name, "\n".join(lines))
    return page


def main() -> None:
    rows = benchmark.Rows(RUNS)
    PAGE.write_text(rendered(PAGE.read_text(), rows))
    draw(rows)


if __name__ == "__main__":
    main()
