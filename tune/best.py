"""The best file: a configuration with all that its cross-validated score depends on, which `leebert train` takes.

Beside it lie the held-out logits of its cells, from which thresholds are chosen later without the sweep's folder.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leebert.config import ModelConfig
from leebert.data.batches import updates_per_epoch
from leebert.errors import SweepError
from leebert.files import write_atomically
from leebert.recipe import RunConfig
from leebert.yaml import dump_yaml
from tune.crossval import held_out_path, load_held_out
from tune.folder import SweepFolder
from tune.found import CellLogits, content_digest, save_logits
from tune.history import describe
from tune.ledger import State
from tune.overview import placed, spec_of
from tune.prepare import data_config
from tune.select import best, complete, one_standard_error, score
from tune.space import SweepSpec
from tune.tradeoff import Objective, curves, curves_if_there, pareto

#: What must agree between sweeps for their scores to be comparable: the same rows in the same folds with the same seeds.
SAME = ("data_fingerprint", "folds", "rows")

#: Of more cells the front is only computed where curves are needed anyway, for another objective: it takes 0.1 s a cell.
FRONT_CELLS = 100


def best_of(
    folders: Sequence[SweepFolder], objective: Objective | None = None
) -> dict[str, tuple[dict[str, Any], list[CellLogits] | None]]:
    """Per task among these sweeps the best file and its logits: of several of one task, that of the highest score.

    Raises SweepError where sweeps of one task differ in data, folds or seeds.
    """
    found: dict[str, list[tuple[SweepFolder, SweepSpec]]] = {}
    for folder in folders:
        spec = spec_of(folder)
        found.setdefault(spec.task_name, []).append((folder, spec))
    chosen = {}
    for task, sweeps in found.items():
        _require_comparable(task, sweeps)
        states = [folder.ledger.read(epochs=False) for folder, _ in sweeps]
        files = [
            best_file(folder, spec, state, objective=objective)
            for (folder, spec), state in zip(sweeps, states, strict=True)
        ]
        place = max(range(len(files)), key=lambda i: files[i]["found"]["objective"]["value"])
        top = files[place]
        if len(files) > 1:
            top["found"]["sweeps"] = {
                f["found"]["sweep"]: {
                    "configuration": f["found"]["configuration"],
                    "value": f["found"]["objective"]["value"],
                }
                for f in files
            }
        chosen[task] = top, best_logits(sweeps[place][0], top["found"]["configuration"], states[place])
    return chosen


def _require_comparable(task: str, sweeps: Sequence[tuple[SweepFolder, SweepSpec]]) -> None:
    first, spec = sweeps[0]
    for other, its in sweeps[1:]:
        differ = [key for key in SAME if other.manifest[key] != first.manifest[key]]
        differ += ["seeds"] if list(its.seeds) != list(spec.seeds) else []
        if differ:
            raise SweepError(
                f"{first.name} and {other.name} are sweeps of {task} with different {', '.join(differ)}: "
                "their scores can't be compared"
            )


def best_file(
    folder: SweepFolder, spec: SweepSpec, state: State | None = None, *, objective: Objective | None = None
) -> dict[str, Any]:
    """The contents of best/<task>.yaml for a sweep: a :class:`RunConfig` with `theta_updates` and `found`.

    `theta_updates` is the median over cells of the best epoch's share of max_epochs, times the updates of the whole
    split under the same schedule. `objective` says what is best (the mean over exits); the score that the file promises
    is the mean over exits all the same. Raises SweepError where no configuration is complete.
    """
    state, objective = state or folder.ledger.read(epochs=False), objective or Objective()
    manifest = folder.manifest
    finished = complete(state.history())
    ids = {c.id for c in finished}
    mine = {key: r for key, r in state.cells.items() if key[0] in ids}
    if objective.kind == "score":
        replayed = curves_if_there(folder.path, mine, manifest["metric"], objective.rule, most=FRONT_CELLS)
    else:
        replayed = curves(folder.path, mine, manifest["metric"], objective.rule)
    judged = objective.rescored(state.history(), replayed)
    chosen = best(judged)
    cells = [r for (config, _, _), r in sorted(state.cells.items()) if config == chosen.id]
    training = spec.train_config(chosen.values, spec.seeds[0])
    # Memory that ran out in the sweep would run out again.
    micro = max(r.get("placement", {}).get("accumulate", 1) for r in cells)
    training = training.model_copy(update={"accumulate": training.accumulate * micro})
    runtime = cells[0].get("runtime", manifest["runtime"])
    share = statistics.median((r["best_epoch"] + 1) / training.max_epochs for r in cells)
    whole = training.max_epochs * updates_per_epoch(manifest["rows"], training.batch_size)
    mean, std = score(next(c for c in state.history() if c.id == chosen.id))
    per_exit = np.mean([r["exits"]["score"] for r in cells], axis=0)
    near = one_standard_error(judged)
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
            "objective": {"name": str(objective), "value": round(score(chosen).mean, 6)},
            "pareto": [point.as_dict() for point in pareto(finished, replayed)] or None,
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


def best_logits(folder: SweepFolder, config: str, state: State) -> list[CellLogits] | None:
    """The held-out logits of a configuration's cells at their best epochs; None, with a warning, where files are gone."""
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


def print_best(values: dict[str, Any], path: Path) -> None:
    """What was chosen, and why, on stdout."""
    found = values["found"]
    spread = "" if found.get("score_std") is None else f" ± {100 * found['score_std']:.2f}"
    print(f"{describe(found['values'])}\n{100 * found['score_mean']:.2f}{spread} over {len(found['cells'])} cells")
    if found["objective"]["name"] != str(Objective()):
        print(f"chosen by the {found['objective']['name']}: {100 * found['objective']['value']:.2f}")
    for sweep, other in found.get("sweeps", {}).items():
        mark = "  (chosen)" if sweep == found["sweep"] else ""
        print(f"sweep {sweep}: {100 * other['value']:.2f}{mark}")
    print("per exit: " + " ".join(f"{100 * v:.2f}" for v in found["score_per_exit"]))
    others = len(found["within_one_standard_error"]) - 1
    print(f"{others} other configuration(s) lie within one standard error")
    on_front = {point["configuration"] for point in found.get("pareto") or []}
    if on_front:
        print(f"{len(on_front)} configuration(s) lie on the front of score against mean layers")
    print(f"{path}: leebert train --config {path}")
