"""Folders of sweeps whose scores a test chooses, cell by cell, with held-out logits: as a driver leaves them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leebert.evaluate import RecordedLogits
from tune.space import SweepSpec, config_id
from tune.store.folder import SweepFolder
from tune.store.held_out import save_held_out
from tune.store.ledger import Ledger

EXITS, EPOCHS, ROWS = 3, 2, 40
SPEC: dict[str, Any] = {
    "task": "mrpc", "backbone": "made-up", "algorithms": ["clo-v2", "blo"], "folds": 3,
    "space": {"lr_theta": [1e-5, 1e-4], "cycle_length": [2, 4]},
}  # fmt: skip
FACTS: dict[str, Any] = {
    "test_train_ratio": None, "metric": "accuracy", "rows": 120, "data_fingerprint": "made up",
    "folds": {"k": 3, "digest": "made up"}, "backbone": {"name": "made-up"}, "code": "made up",
}  # fmt: skip

Score = Callable[[Mapping[str, Any], int, int], float]
States = Callable[[Mapping[str, Any]], str]


def scored_sweep(
    folder: Path,
    score: Score,
    *,
    state: States = lambda values: "complete",
    cells: Callable[[Mapping[str, Any]], int] = lambda values: 10**9,
    status: str | None = "finished",
    facts: Mapping[str, Any] | None = None,
    exits: int = EXITS,
    **change: Any,
) -> SweepFolder:
    """Every configuration of the space that `state` has a word for, with its first so many `cells`; "" is not begun.

    `score` is a cell's mean over exits at its last epoch, which is the best. `status` is how the sweep ended.
    """
    spec = SweepSpec.model_validate({**SPEC, **change})
    folder.mkdir(parents=True)
    resolved = spec.model_dump(mode="json", exclude_none=True)
    (folder / "manifest.json").write_text(json.dumps({**FACTS, "spec": resolved, **(facts or {})}))
    ledger = Ledger(folder / "ledger")
    driver = ledger.driver_writer(1)
    driver.append({"kind": "sweep", "params": {}})
    for index, values in enumerate(spec.configurations()):
        config, word = config_id(values), state(values)
        if not word:
            continue
        driver.append({"kind": "suggest", "config": config, "index": index, "values": values})
        driver.append({"kind": "grant", "config": config, "attempt": 1, "driver": 1, "fences": {}})
        trial = ledger.attempt_writer(config, "0001-0001")
        for seed, fold in spec.cells()[: cells(values)]:
            mean, where = score(values, seed, fold), {"config": config, "attempt": 1, "seed": seed, "fold": fold}
            file = f"{config}-s{seed}-f{fold}-0001-0001.parquet"
            recorded = _logits(mean, exits, 100 * seed + fold)
            digest = save_held_out(folder / "cells" / file, recorded, np.arange(ROWS))
            trial.append(*({**where, **record} for record in _cell(mean, exits, file, digest)))
        trial.close()
        ends = {
            "complete": {"kind": "complete"},
            "pruned": {"kind": "prune", "epoch": 1, "seed": 0, "fold": 0},
            "failed": {"kind": "fail", "attempt": 1, "final": True, "reason": "crash", "message": ""},
        }
        if word in ends:
            driver.append({"config": config, **ends[word]})
    if status is not None:
        driver.append({"kind": "end", "status": status, "note": "", "elapsed": 60.0})
    driver.close()
    return SweepFolder(folder)


def _cell(mean: float, exits: int, file: str, digest: str) -> list[dict[str, Any]]:
    depth = 0.01 * (np.arange(exits) - (exits - 1) / 2)
    records: list[dict[str, Any]] = []
    for epoch in range(EPOCHS):
        score = mean - 0.02 * (EPOCHS - 1 - epoch)
        records.append({
            "kind": "epoch", "epoch": epoch, "score": score, "theta_updates": 10 * (epoch + 1), "seconds": 1.0,
            "train_loss": 1.0, "collapsed": [],
            "exits": {"score": (score + depth).tolist()}, "weights": {"ce": [1.0 + mean] * exits}, "ended": None,
        })  # fmt: skip
    end = {"kind": "cell_end", "ended": "finished", "best_epoch": EPOCHS - 1, "epochs": EPOCHS, "held_out": file}
    end["digests"] = {file: digest}
    return [*records, {**end, **{key: records[-1][key] for key in ("score", "exits", "weights", "seconds")}}]


def _logits(mean: float, exits: int, seed: int) -> RecordedLogits:
    """Deeper exits and higher scores say more of the label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=ROWS)
    signal = (mean * np.linspace(0.5, 3, exits))[:, None, None] * np.eye(2)[labels][None]
    return RecordedLogits((rng.normal(size=(exits, ROWS, 2)) + signal).astype(np.float32), labels)
