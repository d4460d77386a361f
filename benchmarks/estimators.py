"""Error rates and power of estimators of a paired difference between two methods.

Each simulated cross-validation has K folds and S seeds; for each validation sample and run, both methods are right or
wrong. Two sources:

* model: a latent hierarchical model with difficulties of samples, effects of a method on a sample, of a training set
  (a fold) and of a seed. Training sets of different folds share data, so their effects may be correlated.
* learned: two ridge classifiers on two interchangeable halves of the features, trained in K folds, with S random subsets
  of the training samples as seeds. By symmetry no method is better, while both fit the same training data.

Every estimator sees the same data. Results are appended per cell, so a run resumes where the last one ended:

    nice -n 5 .venv/bin/python benchmarks/estimators.py --out docs/results/estimators.json

`--sweep FOLDER` (repeatable) prints how much more the folds of a recorded sweep differ than sampling alone explains.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from leebert.files import write_atomically

#: The level of every test.
ALPHA = 0.05

#: Resamples of a bootstrap.
RESAMPLES = 200


@dataclasses.dataclass(frozen=True)
class Case:
    """One cell of the benchmark.

    Attributes:
        source: `model` or `learned`.
        folds: K.
        seeds: S.
        samples: N, validation samples over all folds.
        training: Model: the standard deviation of a training set's effect on a fold's difference, in units of the standard
            error that sampling gives a fold; learned: unused.
        shared: Model: the correlation of the effects of two training sets: `none`, `test` (n_test / n, as the corrected t
            assumes) or `overlap` (the share of samples that both hold).
        effect: The true difference, in units of about the standard error that sampling gives the mean; 0 is the null.
        tasks: The number of tasks; above 1 only estimators over tasks.
        apart: The standard deviation of true differences over tasks, in the units of `effect`.
    """

    source: str
    folds: int
    seeds: int
    samples: int
    training: float = 0.0
    shared: str = "none"
    effect: float = 0.0
    tasks: int = 1
    apart: float = 0.0

    @property
    def key(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


# Sources: differences in correctness, (R, K, S, n) in {-1, 0, 1}


def modelled(case: Case, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """Draw from the latent model."""
    k, s, n = case.folds, case.seeds, case.samples // case.folds
    rho = {"none": 0.0, "test": 1 / k, "overlap": (k - 2) / (k - 1)}[case.shared]
    # A change of the latent by 1 changes accuracy by the density at 0 of the latent's distribution.
    noise, level, disagree = 0.35, 1.2, 0.11  # the last is the share of samples on which such methods differ
    total = math.sqrt(1 + 2 * noise**2)
    slope = math.exp(-((level / total) ** 2) / 2) / (total * math.sqrt(2 * math.pi))
    error = math.sqrt(disagree / n) / slope / math.sqrt(2)  # a fold's, on the latent, for each of the methods
    difficulty = rng.normal(level, 1.0, (rounds, k, 1, n))
    true = case.effect + case.apart * rng.normal(size=(rounds, 1, 1, 1))
    correct = []
    for method in (0, 1):
        common, own = (rng.normal(size=(rounds, folds, 1, 1)) for folds in (1, k))
        fold = case.training * error * (math.sqrt(rho) * common + math.sqrt(1 - rho) * own)
        seed = 0.5 * error * rng.normal(size=(rounds, k, s, 1))
        shift = math.sqrt(2 / k) * error * true if method == 0 else 0.0
        on_sample = noise * rng.normal(size=(rounds, k, 1, n))
        each = noise * rng.normal(size=(rounds, k, s, n))
        correct.append(difficulty + on_sample + each + fold + seed + shift > 0)
    return correct[0].astype(np.float32) - correct[1]


def learned(case: Case, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """Train ridge classifiers on the halves of the features; an effect strengthens the signal of A's half."""
    k, s, n = case.folds, case.seeds, case.samples // case.folds
    half, out = 12, np.empty((rounds, k, s, n), np.float32)
    direction = np.ones(half) / math.sqrt(half)
    for r in range(rounds):
        label = rng.choice([-1.0, 1.0], k * n)
        correct = []
        halves = [rng.normal(size=(k * n, half)) + np.outer(label, 0.9 * direction) for _ in (0, 1)]
        if case.effect:
            halves[0] += np.outer(label, 2 * case.effect / math.sqrt(k * n) * direction)
        subsets = rng.random((k, s, k * n)) < 0.7
        for x in halves:
            right = np.empty((k, s, n), bool)
            for fold in range(k):
                held = slice(fold * n, (fold + 1) * n)
                for seed in range(s):
                    used = subsets[fold, seed].copy()
                    used[held] = False
                    a = x[used]
                    theta = np.linalg.solve(a.T @ a + 5 * np.eye(half), a.T @ label[used])
                    right[fold, seed] = x[held] @ theta * label[held] > 0
            correct.append(right)
        out[r] = correct[0].astype(np.float32) - correct[1]
    return out


SOURCES: Mapping[str, Callable[[Case, int, np.random.Generator], np.ndarray]] = {"model": modelled, "learned": learned}


# Estimators: (R, K, S, n) → p-values, (R,)


def _t(mean: np.ndarray, variance: np.ndarray, df: np.ndarray | float) -> np.ndarray:
    error = np.sqrt(np.maximum(variance, 1e-300))
    return 2 * special.stdtr(df, -np.abs(mean) / error)


def over_runs(d: np.ndarray) -> np.ndarray:
    """The corrected resampled t over runs (Nadeau and Bengio 2003)."""
    runs = d.mean(axis=3).reshape(len(d), -1)
    j, k = runs.shape[1], d.shape[1]
    return _t(runs.mean(axis=1), runs.var(axis=1, ddof=1) * (1 / j + 1 / (k - 1)), j - 1.0)


def over_folds(d: np.ndarray) -> np.ndarray:
    """The same over folds, seeds averaged."""
    folds, k = d.mean(axis=(2, 3)), d.shape[1]
    return _t(folds.mean(axis=1), folds.var(axis=1, ddof=1) * (1 / k + 1 / (k - 1)), k - 1.0)


def both(d: np.ndarray) -> np.ndarray:
    """Significant only if over runs and over folds (with one seed: over runs)."""
    return over_runs(d) if d.shape[2] == 1 else np.maximum(over_runs(d), over_folds(d))


def plain_runs(d: np.ndarray) -> np.ndarray:
    """The ordinary paired t over runs."""
    runs = d.mean(axis=3).reshape(len(d), -1)
    return _t(runs.mean(axis=1), runs.var(axis=1, ddof=1) / runs.shape[1], runs.shape[1] - 1.0)


def over_samples(d: np.ndarray) -> np.ndarray:
    """The paired z over validation samples, seeds averaged: blind to training sets."""
    each = d.mean(axis=2).reshape(len(d), -1)
    return _t(each.mean(axis=1), each.var(axis=1, ddof=1) / each.shape[1], each.shape[1] - 1.0)


def bootstrap(d: np.ndarray) -> np.ndarray:
    """Hierarchical bootstrap: folds, seeds within folds, samples within folds; p by the normal with its standard error."""
    rng, (rounds, k, s, n) = np.random.default_rng(0), d.shape
    p = np.empty(rounds)
    for r in range(rounds):
        seeds = rng.multinomial(s, np.full(s, 1 / s), (RESAMPLES, k)) / s  # (B, K, S)
        samples = rng.multinomial(n, np.full(n, 1 / n), (RESAMPLES, k)) / n  # (B, K, n)
        folds = rng.multinomial(k, np.full(k, 1 / k), RESAMPLES) / k
        means = np.einsum("bks,bks->bk", seeds, np.einsum("ksn,bkn->bks", d[r], samples, optimize=True))
        error = (means * folds).sum(axis=1).std(ddof=1)
        p[r] = 2 * special.ndtr(-abs(d[r].mean()) / max(error, 1e-300))
    return p


def _parts(d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean, the variance of folds' means, and the part of it that sampling explains, each (R,)."""
    folds = d.mean(axis=(2, 3))
    within = (d.mean(axis=2).var(axis=2, ddof=1) / d.shape[3]).mean(axis=1)
    return folds.mean(axis=1), folds.var(axis=1, ddof=1), within


def components(d: np.ndarray) -> np.ndarray:
    """Random effects in closed form: sampling and training variance, only the latter corrected for shared data."""
    mean, between, within = _parts(d)
    k, total = d.shape[1], d.shape[1] * d.shape[3]
    a = 1 / k + 1 / (k - 1)
    training = between > within
    variance = np.where(training, a * between - within / (k - 1), within / k)
    df = np.where(
        training,
        variance**2 / (a**2 * between**2 / (k - 1) + (within / (k - 1)) ** 2 / (total - k)),
        total - k,
    )
    return _t(mean, variance, df)


def bayesian(d: np.ndarray) -> np.ndarray:
    """A mixed model whose training variance is integrated over its posterior, with a half-Cauchy prior."""
    mean, between, within = _parts(d)
    k, within = d.shape[1], np.maximum(within, 1e-12)
    grid = np.concatenate([np.linspace(0, 4, 41), np.geomspace(4.3, 400, 60)])
    total = 1 + grid**2  # (G,), in units of `within`
    log = -(k - 1) / 2 * (np.log(total) + (between / within)[:, None] / total)
    weight = np.gradient(grid) / (1 + grid**2) * np.exp(log - log.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    error = np.sqrt(within[:, None] * (1 / k + grid**2 * (1 / k + 1 / (k - 1))))
    return (weight * 2 * special.ndtr(-np.abs(mean)[:, None] / error)).sum(axis=1)


def generalised(d: np.ndarray) -> np.ndarray:
    """`tune.analysis.stats.random_effects`: its training variance is integrated over its fiducial distribution."""
    mean, between, within = _parts(d)
    errors, weights = _generalised_errors(between, within, d.shape[1])
    return (weights * 2 * special.ndtr(-np.abs(mean)[:, None] / errors)).sum(axis=1)


def _generalised_errors(between: np.ndarray, within: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    steps = (np.arange(400) + 0.5) / 400
    weights = 4 * steps**3 / (4 * steps**3).sum()
    training = np.maximum(
        0, (k - 1) * between[:, None] / (2 * special.gammaincinv((k - 1) / 2, steps**4)) - within[:, None]
    )
    return np.sqrt(np.maximum(within[:, None] / k + training * (1 / k + 1 / (k - 1)), 1e-30)), weights


ESTIMATORS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "t over runs, uncorrected": plain_runs,
    "paired over samples": over_samples,
    "hierarchical bootstrap": bootstrap,
    "corrected t over runs": over_runs,
    "corrected t over folds": over_folds,
    "both corrected t": both,
    "random effects, estimated": components,
    "mixed model, half-Cauchy": bayesian,
    "random effects, generalised": generalised,
}


# Estimators over tasks: (R, T, K, S, n) → p-values, (R,)


def t_over_tasks(d: np.ndarray) -> np.ndarray:
    """The ordinary t over the tasks' mean differences."""
    tasks = d.mean(axis=(2, 3, 4))
    return _t(tasks.mean(axis=1), tasks.var(axis=1, ddof=1) / tasks.shape[1], tasks.shape[1] - 1.0)


def sum_over_tasks(d: np.ndarray) -> np.ndarray:
    """The mean over tasks with the sum of the generalised variances within tasks: blind to differences between tasks."""
    rng, (rounds, t, k) = np.random.default_rng(0), d.shape[:3]
    mean, variance = np.zeros(rounds), np.zeros((rounds, 400))
    for task in range(t):
        of_task, between, within = _parts(d[:, task])
        chi = rng.chisquare(k - 1, (rounds, 400))
        training = np.maximum(0, (k - 1) * between[:, None] / chi - within[:, None])
        variance += (within[:, None] / k + training * (1 / k + 1 / (k - 1))) / t**2
        mean += of_task / t
    return (2 * special.ndtr(-np.abs(mean)[:, None] / np.sqrt(np.maximum(variance, 1e-30)))).mean(axis=1)


OVER_TASKS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "t over tasks": t_over_tasks,
    "sum over tasks": sum_over_tasks,
}


def cases() -> Iterator[Case]:
    """Yield every cell, nulls first."""
    designs = ((3, 3, 600), (5, 1, 1000), (5, 3, 1000), (10, 1, 1000))
    effects = ((0.0, "none"), (0.5, "test"), (1.0, "test"), (1.0, "overlap"), (2.0, "test"))
    for effect in (0.0, 4.0):
        for folds, seeds, samples in designs:
            for training, shared in effects:
                yield Case("model", folds, seeds, samples, training, shared, effect)
            yield Case("learned", folds, seeds, samples // 2, effect=effect)
        for tasks, apart in ((5, 0.0), (5, 2.0)):
            yield Case("model", 5, 1, 1000, 0.5, "test", effect, tasks, apart)


def measure(case: Case, rounds: int, seed: int) -> dict[str, Any]:
    """Return the share of significant results of every estimator."""
    digest = sum(map(ord, case.key))
    rng = np.random.default_rng([seed, digest])
    if case.tasks > 1:
        d = np.stack([modelled(case, rounds // 4, rng) for _ in range(case.tasks)], axis=1)
        tests: Mapping[str, Callable[[np.ndarray], np.ndarray]] = OVER_TASKS
    else:
        rounds = rounds if case.source == "model" else rounds // 2
        d, tests = SOURCES[case.source](case, rounds, rng), ESTIMATORS
    rejected = {}
    for name, test in tests.items():
        part = d[: rounds // 10] if test is bootstrap else d
        with np.errstate(all="ignore"):
            rejected[name] = {"share": float(np.mean(test(part) < ALPHA)), "rounds": len(part)}
    between, within = (_parts(d)[i] for i in (1, 2)) if case.tasks == 1 else (np.zeros(1), np.ones(1))
    return {**dataclasses.asdict(case), "ratio": float(between.mean() / within.mean()), "rejected": rejected}


# Recorded sweeps


def recorded(folder: Path) -> str:
    """Return how much more the folds of a recorded sweep differ than sampling explains, over all pairs of configurations."""
    import itertools

    from tune.analysis.samples import influences
    from tune.analysis.sweeps import SweepPool
    from tune.store.folder import SweepFolder

    pool = SweepPool.of(SweepFolder(folder))
    done = {c.id: c for c in pool.state.history() if c.state == "complete"}
    (of_exits,) = influences(pool, done)
    between, within = [], []
    for a, b in itertools.combinations(done.values(), 2):
        scores = [{(c.seed, c.fold): c.best.score for c in one.cells if c.best is not None} for one in (a, b)]
        cells = sorted(scores[0].keys() & scores[1].keys())
        sampling, _ = of_exits.variances(dict.fromkeys(cells, ((a.id, b.id),)))
        folds = sorted({fold for _, fold in cells})
        if sampling > 0 and len(folds) > 1:
            means = [np.mean([scores[0][c] - scores[1][c] for c in cells if c[1] == fold]) for fold in folds]
            between.append(float(np.var(means, ddof=1)))
            within.append(sampling)
    if not between:
        return f"{folder.name}: no pair of configurations with recorded logits on several folds"
    ratio = np.mean(between) / np.mean(within)
    return (
        f"{folder.name}: {len(between)} pairs, {pool.spec.folds} folds × {len(pool.spec.seeds)} seeds, "
        f"{pool.manifest['rows']} samples: variance of folds / sampling variance {ratio:.2f} (1: training adds nothing)"
    )


# Output


def table(results: list[dict[str, Any]], effect: float) -> list[str]:
    """Return a Markdown table of per cent significant at one effect: a row per case, a column per estimator."""
    lines = [
        f"| folds × seeds | training sets | {' | '.join(ESTIMATORS)} |",
        "| --- | --- |" + " ---: |" * len(ESTIMATORS),
    ]
    for r in (r for r in results if r["effect"] == effect and r["tasks"] == 1):
        shares = (f"{100 * r['rejected'][name]['share']:.1f}" for name in ESTIMATORS)
        lines.append(f"| {r['folds']} × {r['seeds']} | {_training(r)} | {' | '.join(shares)} |")
    return lines


def _training(r: Mapping[str, Any]) -> str:
    """Name the effects of training sets in a case."""
    return (
        "learned" if r["source"] == "learned" else f"{r['training']:g}{', overlap' if r['shared'] == 'overlap' else ''}"
    )


def page(results: list[dict[str, Any]]) -> str:
    """Return the tables of a results page, in Markdown."""
    lines: list[str] = []
    for effect, title in (
        (0.0, "Level: no true difference"),
        (4.0, "Power: a true difference of about 4 standard errors"),
    ):
        lines += [f"## {title}", "", *table(results, effect), ""]
    lines += ["## Five tasks together", "", "| tasks' true differences | mean | t over tasks | sum over tasks |"]
    lines.append("| --- | ---: | ---: | ---: |")
    for r in (r for r in results if r["tasks"] > 1):
        shares = " | ".join(f"{100 * one['share']:.1f}" for one in r["rejected"].values())
        lines.append(f"| {'equal' if not r['apart'] else 'different'} | {r['effect']:g} | {shares} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000, help="simulated comparisons per cell (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("estimators.json"), help="results, continued (%(default)s)")
    parser.add_argument(
        "--sweep", type=Path, action="append", default=[], help="folder of a recorded sweep; repeatable"
    )
    options = parser.parse_args()
    for folder in options.sweep:
        print(recorded(folder))
    if options.sweep:
        return
    results = json.loads(options.out.read_text()) if options.out.exists() else []
    fields = [field.name for field in dataclasses.fields(Case)]
    present = {Case(**{name: r[name] for name in fields}).key for r in results}
    for case in cases():
        if case.key in present:
            continue
        started = time.monotonic()
        results.append(measure(case, options.rounds, options.seed))
        write_atomically(options.out, json.dumps(results, indent=1) + "\n")
        print(f"{case.key}: {time.monotonic() - started:.1f} s", flush=True)
    print(page(results))


if __name__ == "__main__":
    main()
