"""The best file: a configuration with all that its cross-validated score depends on, which `leebert train` takes.

Beside it lie the held-out logits of its cells, from which thresholds are chosen later without the sweep's folder.
"""

from __future__ import annotations

import statistics
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from leebert.config import ModelConfig
from leebert.data.batches import updates_per_epoch
from leebert.files import write_atomically
from leebert.recipe import RunConfig
from leebert.yaml import dump_yaml
from tune.crossval import held_out_path, load_held_out
from tune.folder import SweepFolder
from tune.found import CellLogits, content_digest, save_logits
from tune.ledger import State
from tune.overview import placed
from tune.prepare import data_config
from tune.select import best, one_standard_error, score
from tune.space import SweepSpec


def best_file(folder: SweepFolder, spec: SweepSpec, state: State | None = None) -> dict[str, Any]:
    """The contents of best/<task>.yaml for a sweep: a :class:`RunConfig` with `theta_updates` and `found`.

    `theta_updates` is the median over cells of the best epoch's share of max_epochs, times the updates of the whole
    split under the same schedule. Raises SweepError where no configuration is complete.
    """
    state = state or folder.ledger.read(epochs=False)
    manifest = folder.manifest
    chosen = best(state.history())
    cells = [r for (config, _, _), r in sorted(state.cells.items()) if config == chosen.id]
    training = spec.train_config(chosen.values, spec.seeds[0])
    # Memory that ran out in the sweep would run out again.
    micro = max(r.get("placement", {}).get("accumulate", 1) for r in cells)
    training = training.model_copy(update={"accumulate": training.accumulate * micro})
    runtime = cells[0].get("runtime", manifest["runtime"])
    share = statistics.median((r["best_epoch"] + 1) / training.max_epochs for r in cells)
    whole = training.max_epochs * updates_per_epoch(manifest["rows"], training.batch_size)
    mean, std = score(chosen)
    per_exit = np.mean([r["exits"]["score"] for r in cells], axis=0)
    near = one_standard_error(state.history())
    run = RunConfig(
        task=spec.task,
        model=_pinned(spec.model, manifest["backbone"]),
        data=data_config(spec),
        training=training,
        theta_updates=max(1, round(share * whole)),
        found={
            "sweep": folder.name,
            "configuration": chosen.id,
            "values": dict(chosen.values),
            "score_mean": round(mean, 6),
            "score_std": round(std, 6) if std == std else None,
            "score_per_exit": [round(float(v), 6) for v in per_exit],
            "cells": [_cell(r, training.accumulate // micro, runtime) for r in cells],
            "within_one_standard_error": [r.configuration.id for r in near],
            "placement": placed(state, chosen.id) or None,
            "complete_configurations": sum(c.state == "complete" for c in state.history()),
            "seeds": list(spec.seeds),
            "folds": manifest["folds"],
            "rows": manifest["rows"],
            "data_fingerprint": manifest["data_fingerprint"],
            "backbone": manifest["backbone"],
            "versions": manifest["versions"],
            "code": manifest["code"],
            "runtime": runtime,
        },
    )
    return run.model_dump(mode="json", exclude_none=True)


def _cell(record: dict[str, Any], accumulate: int, runtime: dict[str, Any]) -> dict[str, Any]:
    """A cell as the best file has it: its scores unrounded, and how it ran where that was unlike the first."""
    cell = {
        "seed": record["seed"],
        "fold": record["fold"],
        "score": record["score"],
        "exits": record["exits"]["score"],
        "best_epoch": record["best_epoch"],
        "epochs": record["epochs"],
        "theta_updates": record["best_theta_updates"],
        "accumulate": accumulate * record.get("placement", {}).get("accumulate", 1),
    }
    if record.get("runtime", runtime) != runtime:
        cell["runtime"] = record["runtime"]
    return cell


def best_logits(folder: SweepFolder, config: str, state: State | None = None) -> list[CellLogits] | None:
    """The held-out logits of a configuration's cells at their best epochs; None, with a warning, where files are gone."""
    state = state or folder.ledger.read(epochs=False)
    found = []
    for (owner, seed, fold), record in sorted(state.cells.items()):
        if owner != config:
            continue
        try:
            held_out, rows = load_held_out(held_out_path(folder.path, record))
        except (OSError, ValueError, KeyError) as error:
            warnings.warn(
                f"the held-out logits of seed {seed}, fold {fold} can't be read ({str(error).splitlines()[0]}): "
                "no threshold can be chosen for a speed-up from this best file",
                stacklevel=2,
            )
            return None
        found.append(CellLogits(seed, fold, held_out, rows))
    return found


def _pinned(model: ModelConfig, backbone: dict[str, Any]) -> ModelConfig:
    """A hub backbone at the revision that was used."""
    revision = backbone.get("revision")
    if not revision:
        return model
    return model.model_copy(update={"backbone": f"{model.backbone.partition('@')[0]}@{revision}"})


def write_best(values: dict[str, Any], out: Path, task: str, logits: list[CellLogits] | None = None) -> Path:
    """Write best/<task>.yaml with a header that says how to use it, and the logits beside it; returns its path.

    `values` gains `found.held_out`, which names that file, and `found.digest`, by which an edited file is known.
    """
    path = out / f"{task}.yaml"
    found = values["found"]
    out.mkdir(parents=True, exist_ok=True)
    if logits:
        # The file that the YAML names comes first: whoever reads the new YAML finds it.
        found["held_out"] = save_logits(out / f"{task}.held-out.parquet", logits)
    found["digest"] = content_digest(values)
    spread = "" if found.get("score_std") is None else f" ± {100 * found['score_std']:.2f}"
    header = (
        f"# The best of {found['complete_configurations']} complete configurations of sweep {found['sweep']}:\n"
        f"# {100 * found['score_mean']:.2f}{spread} over {len(found['cells'])} cells (cross-validated mean over exits, in per cent;\n"
        "# another quantity than a score on dev). Train it on the whole training split, or see whether the score comes out:\n"
        f"#   leebert train --config {path}\n"
        f"#   leebert-tune verify {path}\n"
    )
    write_atomically(path, header + dump_yaml(values))
    return path
