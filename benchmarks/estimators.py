"""Error rates and power of estimators of a paired difference between two methods.

Each simulated cross-validation has K folds and S seeds; for each validation sample and run, both methods are right or
wrong. Two sources:

* model: a latent hierarchical model with difficulties of samples, effects of a method on a sample, of a training set
  (a fold) and of a seed. Training sets of different folds share data, so their effects may be correlated.
* learned: two ridge classifiers on two interchangeable halves of the features, trained in K folds, with S random subsets
  of the training samples as seeds. By symmetry no method is better, while both fit the same training data.

Every estimator sees the same data. Results are appended per cell, so a run resumes where the last one ended:

    nice -n 5 .venv/bin/python benchmarks/estimators.py --rounds 2000 --out docs/results/estimators.json
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
        effect: The true difference, in units of the standard error that sampling gives the mean; 0 is the null.
        tasks: The number of tasks; above 1 only estimators over tasks.
    """

    source: str
    folds: int
    seeds: int
    samples: int
    training: float = 0.0
    shared: str = "none"
    effect: float = 0.0
    tasks: int = 1

    @property
    def key(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


# Sources: differences in correctness, (R, K, S, n) in {-1, 0, 1}


def modelled(case: Case, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """Draw from the latent model."""
    k, s, n = case.folds, case.seeds, case.samples // case.folds
    rho = {"none": 0.0, "test": 1 / k, "overlap": (k - 2) / (k - 1)}[case.shared]
    difficulty = rng.normal(1.2, 1.0, (rounds, k, 1, n))
    # A change of the latent by 1 changes accuracy by the density at 0 of the latent's distribution.
    noise = 0.35
    total = math.sqrt(1 + 2 * noise**2)
    slope = math.exp(-((1.2 / total) ** 2) / 2) / (total * math.sqrt(2 * math.pi))
    disagree = 0.16  # measured below for these constants: the share of samples with different correctness
    error = math.sqrt(disagree / n)  # of a fold's difference by sampling
    both = []
    for method in (0, 1):
        common = math.sqrt(rho) * rng.normal(size=(rounds, 1, 1, 1))
        own = math.sqrt(1 - rho) * rng.normal(size=(rounds, k, 1, 1))
        fold = case.training * error / slope / math.sqrt(2) * (common + own)
        seed = 0.5 * error / slope / math.sqrt(2) * rng.normal(size=(rounds, k, s, 1))
        shift = case.effect * error / math.sqrt(k) / slope * (method == 0)
        on_sample = noise * rng.normal(size=(rounds, k, 1, n))
        each = noise * rng.normal(size=(rounds, k, s, n))
        both.append(difficulty + on_sample + each + fold + seed + shift > 0)
    return both[0].astype(np.float32) - both[1]


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
            halves[0] += np.outer(label, case.effect * 0.75 / math.sqrt(k * n) * direction)
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


def mixed(prior: str, shared: Callable[[int], float]) -> Callable[[np.ndarray], np.ndarray]:
    """A mixed model: the training variance is integrated over its posterior instead of being estimated.

    Args:
        prior: Of the training standard deviation in units of the sampling error of a fold: `cauchy`, `normal` or `flat`.
        shared: From K to the variance of the mean of the training effects, in units of their variance between folds.
    """
    grid = np.concatenate([np.linspace(0, 4, 41), np.geomspace(4.3, 400, 60)])
    width = np.gradient(grid)
    density = {"cauchy": 1 / (1 + grid**2), "normal": np.exp(-(grid**2) / 2), "flat": np.ones(len(grid))}[prior]

    def estimator(d: np.ndarray) -> np.ndarray:
        mean, between, within = _parts(d)
        k = d.shape[1]
        within = np.maximum(within, 1e-12)
        total = 1 + grid**2  # (G,), in units of `within`
        log = -(k - 1) / 2 * (np.log(total) + (between / within)[:, None] / total)
        weight = density * width * np.exp(log - log.max(axis=1, keepdims=True))
        weight /= weight.sum(axis=1, keepdims=True)
        error = np.sqrt(within[:, None] * (1 / k + grid**2 * shared(k)))
        return (weight * 2 * special.ndtr(-np.abs(mean)[:, None] / error)).sum(axis=1)

    return estimator


ESTIMATORS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "t over runs, uncorrected": plain_runs,
    "corrected t over runs": over_runs,
    "corrected t over folds": over_folds,
    "both": both,
    "paired over samples": over_samples,
    "hierarchical bootstrap": bootstrap,
    "random effects": components,
    "mixed, half-normal": mixed("normal", lambda k: 1 / k + 1 / (k - 1)),
    "mixed, half-Cauchy": mixed("cauchy", lambda k: 1 / k + 1 / (k - 1)),
    "mixed, flat": mixed("flat", lambda k: 1 / k + 1 / (k - 1)),
    "mixed, half-Cauchy, overlap": mixed("cauchy", lambda k: (k - 1) ** 2 / k),
}
