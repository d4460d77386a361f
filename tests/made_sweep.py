"""A sweep's folder as a driver leaves it, without training: its scores are made up, and the same each time."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from leebert.evaluate import RecordedLogits
from leebert.tradeoff import Tradeoff, tradeoff
from tune.space import SweepSpec, config_id
from tune.store.folder import SweepFolder
from tune.store.held_out import save_held_out
from tune.store.ledger import Ledger

EXITS, FOLDS, EPOCHS = 6, 3, 2
SPEC: dict[str, Any] = {
    "task": "mrpc", "backbone": "made-up", "algorithms": ["clo-v2", "blo"], "folds": FOLDS,
    "space": {
        "lr_theta": [1e-5, 3e-5, 1e-4], "lr_omega": [1e-4, 1e-3], "cycle_length": [2, 4], "batch_size": [16, 32],
    },
}  # fmt: skip


def made_sweep(
    folder: Path,
    uri: str,
    *,
    end: bool = True,
    configs: int | None = None,
    held_out: Callable[[int, int], RecordedLogits] | None = None,
    curves: bool = True,
    diverged: Collection[tuple[int, int]] = (),
    ends: Callable[[dict[str, Any], int], dict[str, Any]] = lambda values, fold: {},
    prune_last: bool = True,
    **change: Any,
) -> SweepFolder:
    """All configurations of the space (or the first so many) complete, but for the last, which is pruned.

    `held_out` makes the logits of a cell, which scores know nothing of, from the configuration's number and the fold. Without
    `curves` records are as they were before they held any, with 20 evenly spaced thresholds that nobody is to read.
    `diverged` names such cells. `ends` makes what else, or otherwise, stands in the end of a configuration's cell.
    """
    spec = SweepSpec.model_validate({**SPEC, "tracking": {"uri": uri}, **change})
    ledger, rng = Ledger(folder / "ledger"), np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    resolved = spec.model_dump(mode="json", exclude_none=True)
    facts = {
        "spec": resolved, "test_train_ratio": None, "metric": "accuracy", "rows": 300, "data_fingerprint": "made up",
        "folds": {"k": FOLDS, "digest": "made up"}, "backbone": {"name": "made-up"}, "versions": {}, "code": "made up",
        "runtime": {},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(facts))
    driver = ledger.driver_writer(1)
    origin = {"source": {"name": "leebert-tune sweep", "commit": "c0ffee"}}
    dataset = {"name": "mrpc", "digest": "made up", "rows": 300, "source": "mrpc"}
    driver.append({"kind": "sweep", "params": {"folds": FOLDS}, **origin, "dataset": dataset})
    every = list(spec.configurations())[:configs]
    for index, values in enumerate(every):
        config = config_id(values)
        last = prune_last and index == len(every) - 1
        driver.append({"kind": "suggest", "config": config, "index": index, "values": values})
        driver.append({"kind": "grant", "config": config, "attempt": 1, "driver": 1, "fences": {}})
        trial = ledger.attempt_writer(config, "0001-0001")
        for fold in range(1 if last else FOLDS):
            *epochs, cell_end = _cell(values, rng)
            cell_end |= ends(values, fold)
            if (index, fold) in diverged:
                cell_end |= {"ended": "diverged", "score": None, "exits": {}, "weights": {}}
            elif held_out is not None:
                recorded = held_out(index, fold)
                cell_end["curve"] = tradeoff(recorded, metric="accuracy").as_dict()
                cell_end["held_out"] = f"{config}-s0-f{fold}-0001-0001.parquet"
                rows = np.arange(recorded.logits.shape[1])
                name = cell_end["held_out"]
                cell_end["digests"] = {name: save_held_out(folder / "cells" / name, recorded, rows)}
            if not curves:
                del cell_end["curve"]
                cell_end["tradeoff"] = {"layers": [1.0] * 20, "score": [0.0] * 20}
            for record in (*epochs, cell_end):
                trial.append({"config": config, "attempt": 1, "seed": 0, "fold": fold, **record})
        trial.close()
        pruned = {"kind": "prune", "config": config, "epoch": EPOCHS - 1, "seed": 0, "fold": 0}
        driver.append(pruned if last else {"kind": "complete", "config": config})
    if end:
        driver.append({"kind": "end", "status": "finished", "note": "", "elapsed": 60.0})
    driver.close()
    return SweepFolder(folder)


def _cell(values: dict[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
    depth = np.arange(1, EXITS + 1)
    clo = values["algorithm"] == "clo-v2"
    quality = (
        0.84
        + 0.02 * clo
        - 0.02 * abs(np.log10(values["lr_theta"]) + 4.5)
        + 0.004 * np.log10(values.get("lr_omega", 1e-4))
    )
    quality += 0.003 * (values.get("batch_size") == 16) + 0.004 * (values.get("cycle_length") == 4)
    scores = quality - (0.16 if clo else 0.2) * np.exp(-depth / 2) + rng.normal(0, 0.008, EXITS)
    weights = 0.6 + 0.15 * depth * (1 if clo else 0.7) + rng.normal(0, 0.04, EXITS)
    records: list[dict[str, Any]] = []
    for epoch in range(EPOCHS):
        exits = (scores - 0.03 * (EPOCHS - 1 - epoch)).round(6).tolist()
        records.append({
            "kind": "epoch", "epoch": epoch, "score": float(np.mean(exits)), "theta_updates": 50 * (epoch + 1),
            "seconds": 3.0, "train_loss": 1.0 / (1 + epoch), "collapsed": [], "ended": None,
            "exits": {"score": exits, "loss": [0.5] * EXITS}, "weights": {"ce": weights.round(6).tolist()},
        })  # fmt: skip
    threshold = np.linspace(1, 0, 41)
    layers = EXITS - (EXITS - 1) * threshold ** (0.7 if clo else 0.9)
    curve = np.interp(layers, depth, scores) + 0.01 * np.sin(np.pi * threshold)
    layers_of = tuple(range(1, EXITS + 1))
    made = Tradeoff(
        "normalised_entropy", layers.round(6), {"score": curve.round(6)}, threshold, np.empty((41, 0), int), layers_of,
        EXITS, None, float(scores[0]),
    )  # fmt: skip
    best = records[-1]
    records.append({
        "kind": "cell_end", "ended": "finished", "best_epoch": EPOCHS - 1, "score": best["score"],
        "exits": best["exits"], "weights": best["weights"], "last_score": best["score"], "epochs": EPOCHS,
        "theta_updates": 100, "best_theta_updates": 100, "seconds": 6.0, "wall_seconds": 6.5,
        "curve": made.as_dict(),
    })  # fmt: skip
    return records
