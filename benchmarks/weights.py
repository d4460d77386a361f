"""Optimisers of ω on small problems whose right loss weights are known (`leebert.data.synthetic.known_weights`).

Every method trains on every problem with the same seeds; a seed is a true network, its samples, an initial network and
batches. Reported is the difference of the test score (mean over the exits that count) from uniform weights on the same
batches (`uniform-d1`), with a 95 % interval over seeds, and the mean weight at the end of the terms that are known to be
good or bad; 1 is uniform. *Best fixed* gives these terms one fixed weight, chosen from a grid on other seeds.

Each finished run is a row of the Parquet file --out, from which an interrupted benchmark resumes; --budget stops it after
that many minutes. `--run 'hyper lr_omega=0.1 temperature=2'` adds runs of any method with any training options. --rounds is
the number of seeds. A run takes about half a second on one core, one with the hypergradient 1.5 s; the default table takes
half an hour.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import Result, parser, start, stop

from leebert.data.synthetic.known_weights import PROBLEMS
from leebert.files import replaced
from leebert.methods import applies
from leebert.testing.known_weights import trained
from tune.analysis.stats import Interval, corrected_t

CONTROL = "uniform-d1"
#: The methods that are compared, in this order, each at all problems before the next seed.
METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("slo", {}),
    ("uncertainty", {}),
    ("blo", {}),
    ("clo-v1", {}),
    ("clo-v2", {}),
    ("hyper-v2", {}),
    ("hyper-v2", {"parametrisation": "exit_teacher"}),
)
#: Others, which run after all seeds of these.
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("hyper", {}),
    ("hyper", {"outer": "ce"}),
    ("hyper-v2", {"averaging": 0.0}),
    ("hyper-v2", {"parametrisation": "group_softmax"}),
    ("hyper-v2", {"cycle_length": 1}),
    ("hyper-v2", {"cycle_length": 5}),
    ("hyper-v2", {"cycle_length": 8}),
    ("hyper-v2", {"outer": "score"}),
    ("hyper-v2", {"outer": "deepest"}),
    ("hyper-v2", {"fixed_d2": 0.25}),
    ("slo", {"parametrisation": "group_softmax"}),
    ("blo", {"parametrisation": "group_softmax"}),
    ("clo-v2", {"parametrisation": "group_softmax"}),
    ("clo-v2", {"outer": "ce"}),
    ("clo-v1", {"reuse_forward": True}),
    ("clo-v2", {"omega_optimizer": "adam_each"}),
    ("clo-v2", {"omega_optimizer": "sgd"}),
    ("blo", {"omega_optimizer": "sgd"}),
)
#: Uniform weights on other samples than D1: on all, and on all but a D2 that stays the same.
UNIFORM: tuple[tuple[str, str], ...] = (("uniform", "{}"), (CONTROL, '{"fixed_d2": 0.25}'))
#: λ2 at which ω moves by about 2, and as far as it wants, in 240 updates.
RATES = (0.01, 0.1)
#: Problems and methods for which the other parametrisations are compared, at the larger rate; these methods also at the smaller.
SHAPED = ("constant", "noisy_labels")
SHAPES = ("raw", "softplus", "group_softmax")
SHAPED_METHODS = ("slo", "clo-v2", "hyper-v2")
#: Fixed weights of the marked terms. Distillation terms have the factor 1/12, so a large weight means almost only them.
GRID = {"bad": (0.0, 0.25, 0.5, 1.0), "good": (1.0, 4.0, 16.0, 64.0)}
#: Seeds on which the fixed weight is chosen; none is reported.
CHOOSING = tuple(range(1000, 1005))
#: Epochs at whose ends weights are kept.
KEPT = (1, 2, 3, 5, 8, 12, 16, 20, 25, 30)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: a problem, a method with training options, a seed; or a fixed weight of the marked terms."""

    problem: str
    algorithm: str
    options: str = "{}"  # JSON with sorted keys
    fixed: float | None = None
    seed: int = 0

    def row(self) -> dict[str, Any]:
        """Train, and return the row of the Parquet file."""
        result = trained(PROBLEMS[self.problem], self.algorithm, json.loads(self.options), self.seed, self.fixed)
        path = result.marked_weights
        kept = sorted({min(epoch, len(path)) for epoch in KEPT})
        return {
            **dataclasses.asdict(self),
            "score": result.score,
            "exits": result.scores.round(5).tolist(),
            "marked": result.marked_weight,
            "epochs": kept,
            "path": [round(float(path[epoch - 1]), 4) for epoch in kept],
            "weights": result.weights[-1].round(4).tolist(),
            "ended": result.ended,
            "seconds": round(result.seconds, 3),
        }


def label(algorithm: str, options: str) -> str:
    """Return a row's name: the method and the values of its options, λ2 last."""
    values = json.loads(options)
    rate = values.pop("lr_omega", "")
    return " ".join([algorithm, *(f"{key}={value}" for key, value in values.items()), str(rate)])


class Rows:
    """The finished runs, in a Parquet file that is replaced after each run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = pd.read_parquet(path).to_dict("records") if path.exists() else []
        for row in self.rows:
            row["fixed"] = None if row["fixed"] is None or np.isnan(row["fixed"]) else float(row["fixed"])
        self.runs = {_run(row) for row in self.rows}

    def add(self, run: Run) -> None:
        """Train a run and write its row."""
        self.rows.append(run.row())
        self.runs.add(run)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(self.path, sync=False) as temporary:
            pd.DataFrame(self.rows).to_parquet(temporary, compression="zstd", index=False)

    def of(self, problem: str, algorithm: str, options: str) -> list[dict[str, Any]]:
        """Return the rows of a method with these options; not those with fixed weights."""
        wanted = (problem, algorithm, options, None)
        return [r for r in self.rows if (r["problem"], r["algorithm"], r["options"], r["fixed"]) == wanted]

    def scores(self, problem: str, algorithm: str, options: str = "{}", fixed: float | None = None) -> dict[int, float]:
        """Return the score of each seed."""
        wanted = Run(problem, algorithm, options, fixed)
        return {r["seed"]: r["score"] for r in self.rows if dataclasses.replace(_run(r), seed=0) == wanted}

    def best_fixed(self, problem: str) -> float | None:
        """Return the fixed weight with the best mean over the choosing seeds; None before all of them have run."""
        means = {}
        for weight in GRID[PROBLEMS[problem].worth]:
            scores = self.scores(problem, CONTROL, fixed=weight)
            if not set(CHOOSING) <= scores.keys():
                return None
            means[weight] = np.mean([scores[seed] for seed in CHOOSING])
        return max(means, key=lambda weight: means[weight])

    def difference(self, problem: str, algorithm: str, options: str = "{}", fixed: float | None = None) -> Interval:
        """Compare with uniform weights, in pairs by seed; a fraction. Seeds draw new problems, so the t-test is exact."""
        control = self.scores(problem, CONTROL, control_options(options) if algorithm != CONTROL else "{}")
        scores = self.scores(problem, algorithm, options, fixed)
        seeds = sorted(s for s in scores.keys() & control.keys() if s not in CHOOSING)
        if not seeds:
            return Interval(np.nan, np.nan, np.nan, np.nan, 0)
        return corrected_t([scores[seed] - control[seed] for seed in seeds], 0.0)


def control_options(options: str) -> str:
    """Return those of a run's options that uniform weights read, too, such as the temperature: its control has them."""
    return dumped({key: value for key, value in json.loads(options).items() if applies(key, CONTROL)})


def _run(row: dict[str, Any]) -> Run:
    return Run(*(row[field.name] for field in dataclasses.fields(Run)))


def dumped(options: Mapping[str, Any]) -> str:
    """Return options as the JSON of a row."""
    return json.dumps(options, sort_keys=True)


def at_rate(rate: float, options: Mapping[str, Any]) -> str:
    """Return options and λ2 as the JSON of a row."""
    return dumped({**options, "lr_omega": rate})


def planned(rows: Rows, problems: Sequence[str], seeds: int, extra: Sequence[tuple[str, str]]) -> Iterator[Run]:
    """Yield all runs, the most important first.

    These are the choice of the fixed weight, the methods at the large rate seed by seed, `extra`, and then seed by seed the
    variants, other parametrisations and the small rate.
    """
    for seed, problem in itertools.product(CHOOSING, problems):
        grid = GRID[PROBLEMS[problem].worth]
        yield from (Run(problem, CONTROL, fixed=weight, seed=seed) for weight in grid)
    pairs = list(itertools.product(range(seeds), problems))
    for seed, problem in pairs:
        yield Run(problem, CONTROL, seed=seed)
        if (weight := rows.best_fixed(problem)) is not None:
            yield Run(problem, CONTROL, fixed=weight, seed=seed)
        yield from (Run(problem, method, at_rate(RATES[-1], own), seed=seed) for method, own in METHODS)
    for seed, problem in pairs:
        yield from (Run(problem, CONTROL, control_options(options), seed=seed) for _, options in extra)
        yield from (Run(problem, method, options, seed=seed) for method, options in extra)
    for seed, problem in pairs:
        yield from (Run(problem, method, options, seed=seed) for method, options in UNIFORM)
        for method, own in VARIANTS:
            if not (own.get("outer") == "deepest" and PROBLEMS[problem].planted):  # the last exit has no gradient
                yield Run(problem, method, at_rate(RATES[-1], own), seed=seed)
        for shape, method in itertools.product(SHAPES if problem in SHAPED else (), SHAPED_METHODS):
            if (method, {"parametrisation": shape}) not in VARIANTS:
                yield Run(problem, method, at_rate(RATES[-1], {"parametrisation": shape}), seed=seed)
        for rate, method in itertools.product(RATES[:-1], SHAPED_METHODS):
            yield Run(problem, method, at_rate(rate, {}), seed=seed)


def parsed(text: str) -> tuple[str, str]:
    """Parse `METHOD key=value ...` to a method and its options."""
    method, *pairs = text.split()
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"{pair!r}: write options as key=value")
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    return method, dumped(options)


def shown(interval: Interval) -> str:
    """Return a difference in points with half its interval."""
    if np.isnan(interval.mean):
        return "-"
    half = f" ±{100 * (interval.high - interval.mean):.1f}" if interval.defined else ""
    return f"{100 * interval.mean:+.1f}{half}"


def table(rows: Rows, problems: Sequence[str], methods: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield the lines of one method × problem table, at most 80 columns wide."""
    yield f"{'points from uniform-d1':28s}" + "".join(f"{p[:12]:>13s}" for p in problems)
    fixed = [(p, rows.best_fixed(p)) for p in problems]
    best = ["-" if w is None else shown(rows.difference(p, CONTROL, fixed=w)) for p, w in fixed]
    yield f"{'best fixed':28s}" + "".join(f"{value:>13s}" for value in best)
    for method, options in methods:
        values = [shown(rows.difference(p, method, options)) for p in problems]
        if set(values) == {"-"}:
            continue
        yield f"{label(method, options):28s}" + "".join(f"{value:>13s}" for value in values)


def options() -> argparse.Namespace:
    """Parse the command line."""
    made = parser(__doc__, rounds=10)
    made.set_defaults(threads=1)
    kept = Path("docs/results/weights/runs.parquet")
    made.add_argument("--out", type=Path, default=kept, metavar="FILE", help="the finished runs (%(default)s)")
    made.add_argument("--budget", type=float, default=float("inf"), metavar="MINUTES", help="start no run after these")
    made.add_argument("--problems", default=",".join(PROBLEMS), help="comma-separated (%(default)s)")
    made.add_argument(
        "--run", type=parsed, action="append", default=[], metavar="'METHOD KEY=VALUE ...'", help="more runs"
    )
    return made.parse_args()


def main() -> None:
    given = options()
    problems = given.problems.split(",")
    if unknown := [name for name in problems if name not in PROBLEMS]:
        stop(f"--problems: {', '.join(unknown)} should be of {', '.join(PROBLEMS)}")
    start(given.threads)
    rows, ends, pending = Rows(given.out), time.monotonic() + 60 * given.budget, 0
    for run in planned(rows, problems, given.rounds, given.run):
        if run in rows.runs:
            continue
        if time.monotonic() > ends:
            pending += 1
            continue
        rows.add(run)
    methods = [(method, at_rate(rate, own)) for method, own in (*METHODS, *VARIANTS) for rate in RATES] + given.run
    for at in range(0, len(problems), 4):
        print("\n".join(table(rows, problems[at : at + 4], methods)), end="\n\n")
    given.run, given.out = [" ".join(run) for run in given.run], given.out.name
    result = Result("weights", given)
    result.figure("runs", len(rows.rows))
    result.figure("pending runs", pending)
    result.figure("seconds per run", [float(row["seconds"]) for row in rows.rows] or 0.0, "s")
    result.end("fp32")


if __name__ == "__main__":
    main()
