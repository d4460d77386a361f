"""Time `leebert-tune best` on a sweep of 2,000 configurations with 5 folds each.

The sweep is synthetic: manifest, space and ledger, written by the real writers (without fsync), with 10 epochs of 12
exits per cell and all keys of real records. The command is timed in its own process. Importing its modules, and
reading the ledger and choosing, are timed separately in this process.

Target: < 5 s for the command.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from common import BACKBONE, Result, alternate, parser, scratch, timed

EPOCHS, EXITS, FOLDS = 10, 12, 5
#: Of a curve of score against mean exit layer: as many as twelve exits have at steps of 2 %.
POINTS = 126
SPACE = {
    "task": "mrpc",
    "backbone": BACKBONE,
    "pooling": "mean",
    "algorithms": ["clo-v2"],
    "space": {"lr_theta": {"log_range": [1e-5, 1e-3]}, "lr_omega": {"log_range": [1e-5, 1e-2]}},
    "training": {"max_epochs": EPOCHS},
    "folds": FOLDS,
    "searcher": {"name": "random", "configurations": 2000},
}


def sweep(path: Path, configurations: int) -> None:
    """Write the folder of a finished sweep."""
    from leebert.provenance import code_version, versions
    from tune.space import SweepSpec, config_id
    from tune.store.folder import SweepFolder

    path.mkdir()
    folder = SweepFolder(path)
    spec = SweepSpec.model_validate(SPACE).model_dump(mode="json", exclude_none=True)
    made_up = {
        "sweep": folder.name, "task": "mrpc", "rows": 3668, "data_fingerprint": "0" * 64, "test_train_ratio": 0.25,
        "folds": {"k": FOLDS, "seed": 0, "grouping": "made up", "digest": "0" * 64}, "backbone": {"name": BACKBONE},
        "versions": versions(), "code": code_version(), "runtime": {}, "metric": "accuracy", "spec": spec,
    }  # fmt: skip
    folder.write_manifest(made_up)
    rng = np.random.default_rng(0)
    with mock.patch("os.fsync"):
        driver = folder.ledger.driver_writer(1)
        driver.append({"kind": "sweep", "name": folder.name, "task": "mrpc", "params": {}})
        for index in range(configurations):
            lr_theta, lr_omega = 10 ** rng.uniform(-5, -3), 10 ** rng.uniform(-5, -2)
            values = {"algorithm": "clo-v2", "lr_theta": lr_theta, "lr_omega": lr_omega}
            config = config_id(values)
            driver.append({"kind": "suggest", "config": config, "index": index, "values": values})
            driver.append({"kind": "grant", "config": config, "attempt": 1, "fences": {}})
            trial = folder.ledger.attempt_writer(config, "0001-0001")
            quality = rng.uniform(0.6, 0.8)
            for fold in range(FOLDS):
                for record in cell(rng, config, fold, quality):
                    trial.append(record)
            trial.close()
            driver.append({"kind": "complete", "config": config})
        driver.append({"kind": "end", "status": "finished", "note": ""})
        driver.close()


def cell(rng: np.random.Generator, config: str, fold: int, quality: float) -> list[dict[str, Any]]:
    """The records of one cell, with the keys and the length of real ones."""
    where = {"config": config, "attempt": 1, "seed": 0, "fold": fold}
    records: list[dict[str, Any]] = []
    best: dict[str, Any] = {}
    for epoch in range(EPOCHS):
        accuracy = quality + 0.1 * epoch / EPOCHS + 0.02 * rng.standard_normal(EXITS)
        f1 = accuracy + 0.05 * rng.random(EXITS)
        score = (accuracy + f1) / 2
        report = {
            "epoch": epoch, "stage": "joint", "theta_updates": 45 * (epoch + 1), "seconds": float(rng.uniform(20, 30)),
            "train_loss": float(rng.uniform(5, 9)), "score": float(score.mean()),
            "exits": {
                "accuracy": accuracy.tolist(), "f1": f1.tolist(), "score": score.tolist(),
                "loss": rng.uniform(0.4, 0.7, EXITS).tolist(),
            },
            "weights": {"ce": rng.uniform(0, 2, EXITS).tolist(), "kd": rng.uniform(0, 2, EXITS).tolist()},
            "collapsed": [], "best_epoch": 0, "ended": "max_epochs" if epoch == EPOCHS - 1 else None,
        }  # fmt: skip
        if not best or report["score"] > best["score"]:
            best = report
        records.append({"kind": "epoch", **where, **report, "best_epoch": best["epoch"]})
    summary = {
        "ended": "max_epochs", "best_epoch": best["epoch"], "score": best["score"], "exits": best["exits"],
        "weights": best["weights"], "last_score": records[-1]["score"], "epochs": EPOCHS,
        "theta_updates": records[-1]["theta_updates"], "best_theta_updates": best["theta_updates"],
        "seconds": 250.0, "wall_seconds": 251.0, "held_out": "left-out.parquet",
        "curve": {
            "criterion": "normalised_entropy", "patience": None, "depth": EXITS, "exit_layers": list(range(1, EXITS + 1)),
            "first_exit": 0.6, "layers": np.geomspace(1, EXITS, POINTS).round(9).tolist(),
            "score": np.sort(rng.uniform(0.6, 0.9, POINTS)).round(9).tolist(),
        },
    }  # fmt: skip
    return [*records, {"kind": "cell_end", **where, **summary}]


def command(path: Path, out: Path) -> None:
    """`leebert-tune best`, in a process of its own."""
    arguments = ["best", path.name, "--storage", str(path.parent), "--out", str(out)]
    subprocess.run(
        [sys.executable, "-c", "from tune.cli import main; main()", *arguments], check=True, capture_output=True
    )


def run(options: argparse.Namespace, path: Path, result: Result) -> None:
    """The command, its imports, reading and choosing."""
    from tune.analysis.choose import choose
    from tune.analysis.sweeps import LoadedSweep
    from tune.analysis.tradeoff import RankingObjective
    from tune.models.write_best import best_file
    from tune.store.folder import SweepFolder

    folder = SweepFolder(path)
    made_up = LoadedSweep.read(folder)
    state = folder.ledger.read()
    size = sum(p.stat().st_size for p in (path / "ledger").rglob("*.jsonl"))
    imports = [
        sys.executable,
        "-c",
        "import tune.cli, tune.models.write_best, tune.store.folder, tune.analysis.overview",
    ]
    found = alternate(
        {
            "importing": lambda number: timed(lambda: subprocess.run(imports, check=True)),
            "reading the ledger": lambda number: timed(folder.ledger.read),
            "choosing": lambda number: timed(lambda: best_file(choose([made_up], RankingObjective()))),
            "leebert-tune best": lambda number: timed(lambda: command(path, path / "best")),
        },
        options.rounds,
    )
    result.figure("records", sum(map(len, state.epochs.values())) + len(state.cells))
    result.figure("ledger", size / 1e6, "MB")
    for name, values in found.items():
        if name == "leebert-tune best":
            result.target(f"{name}, s", values, 5.0)
        else:
            result.figure(name, values, "s")
    if options.profile:
        with cProfile.Profile() as profile:
            folder.ledger.read()
        pstats.Stats(profile).sort_stats("tottime").print_stats(15)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--configurations", type=int, default=2000, help="configurations (%(default)s)")
    made.add_argument("--profile", action="store_true", help="print where reading the ledger spends its time")
    options = made.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    result = Result("best", options)
    with scratch() as folder:
        sweep(folder / "made-up", options.configurations)
        run(options, folder / "made-up", result)
    result.end()


if __name__ == "__main__":
    main()
