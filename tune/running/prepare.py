"""From a search space to what trials need: rows read and tokenised or decoded once, folds made and saved, all of it written down."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leebert.config import TrainConfig
from leebert.errors import ConfigError, DataError
from leebert.methods import applies
from leebert.provenance import backbone_identity, code_version, versions
from leebert.training_data import effective_task, load_training_data
from tune.machines.nodes import Stamp
from tune.running.crossval import Study
from tune.running.outside import OutsideParts, recorded
from tune.space import SweepSpec
from tune.space.spec import data_config
from tune.store.folder import SweepFolder


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The training split of a space, ready for trials."""

    spec: SweepSpec
    problem: Any
    folds: Any
    facts: dict[str, Any]  # what the manifest says of the data

    @property
    def outside(self) -> OutsideParts:
        """The parts of other packages that trials use."""
        return OutsideParts.of(self.spec, self.facts["metric"])

    def study(self, folder: Path, device: str = "auto") -> Study:
        """What the trials of a sweep in `folder` share."""
        spec = self.spec
        return Study(
            folder=str(folder),
            problem=self.problem,
            folds=self.folds,
            cells=spec.cells(),
            training=spec.training,
            threads=max(1, int(spec.resources.cpus)),
            device=device if device != "auto" else ("cuda" if spec.resources.gpus else "cpu"),
            keep_checkpoints=spec.keep_checkpoints,
            hang_seconds=60 * spec.resources.hang_minutes,
            stamp=Stamp.here(self.outside.packages),
            outside=self.outside,
            evaluate=tuple(self.facts.get("evaluated", ())),
        )


def prepare(spec: SweepSpec, cache: Path) -> Prepared:
    """Read, subset, split and tokenise (or decode) the training split. `cache` is shared by all nodes.

    No other split is opened, unless the space says `evaluate`.
    """
    from leebert.data.folds import make_folds

    data = data_config(spec)
    task = effective_task(spec.task, data.group_by)
    loaded = load_training_data(task, data, spec.model, cache)
    folds = make_folds(loaded.examples, task, spec.folds, spec.fold_seed)
    held_out = len(folds.held_out(0))
    evaluated = _evaluation_splits(task, spec, loaded, cache) if spec.evaluate else {}
    problem = loaded.problem(splits=tuple((split, path) for split, (path, _) in evaluated.items()))
    _check_model_and_batches(spec, problem, folds)
    return Prepared(
        spec=spec,
        problem=problem,
        folds=folds,
        facts={
            "rows": len(loaded.examples),
            "truncated_rows": loaded.truncated_rows,
            "skipped_rows": loaded.examples.skipped,
            "data_fingerprint": loaded.examples.fingerprint(),
            "tokens": loaded.path,
            "label_names": list(task.label_names),
            "metric": task.metric,
            "folds": {"k": spec.folds, "seed": spec.fold_seed, "grouping": folds.grouping, "digest": folds.digest},
            "test_train_ratio": held_out / (len(loaded.examples) - held_out),
            **({"evaluated": {s: fingerprint for s, (_, fingerprint) in evaluated.items()}} if evaluated else {}),
        },
    )


def _evaluation_splits(task: Any, spec: SweepSpec, loaded: Any, cache: Path) -> dict[str, tuple[str, str]]:
    """The task's evaluation splits, made ready: split → file, fingerprint of the rows."""
    if not task.eval_splits:
        raise DataError(f"task {task.name} declares no development split: there is nothing to evaluate on")
    found = {}
    for split in task.eval_splits:
        path, fingerprint = loaded.split(split, spec.data.dir, cache)
        found[split] = (str(Path(path).resolve()), fingerprint)
    return found


def _check_model_and_batches(spec: SweepSpec, problem: Any, folds: Any) -> None:
    """Weights that can't be read, batches larger than a fold, methods that the network is not made for: said now, not by
    every trial."""
    from leebert.data.batches import updates_per_epoch

    smallest = min(len(folds.train(fold)) for fold in range(folds.k))
    searched = spec.space["batch_size"].listed() if "batch_size" in spec.space else None
    for size in searched or (spec.train_config({}).batch_size,):
        updates_per_epoch(smallest, int(size))
    for algorithm, error in misfits(spec, problem).items():
        raise ConfigError(f"algorithm {algorithm} on {spec.backbone}: {error}") from None


def misfits(spec: SweepSpec, problem: Any) -> dict[str, ConfigError]:
    """The algorithms of a space that the network is not made for, and why; reads the weights."""
    from leebert.stages import check, method

    model = problem.model(spec.train_config({}))
    found: dict[str, ConfigError] = {}
    for config in _reductions(spec):
        try:
            check(method(config, model.num_exits), model, config)
        except ConfigError as error:
            found.setdefault(config.algorithm, error)
    return found


def _reductions(spec: SweepSpec) -> Iterator[TrainConfig]:
    """A configuration of every algorithm, and of those that reduce the network one for each share that is kept."""
    kept = spec.space["keep"].listed() if "keep" in spec.space else None
    for algorithm in spec.algorithms:
        shares = [{"keep": keep} for keep in kept] if kept and applies("keep", algorithm) else [{}]
        for share in shares:
            yield spec.train_config({"algorithm": algorithm, **share})


def manifest(
    prepared: Prepared, folder: SweepFolder, resolved: dict[str, Any], runtime: dict[str, Any]
) -> dict[str, Any]:
    """What stands in a sweep's manifest.json: enough to go on with it, and to say what its numbers depend on."""
    return {
        "sweep": folder.name,
        "task": prepared.spec.task_name,
        "spec": resolved,
        "spec_digest": prepared.spec.digest,
        "cells": [list(cell) for cell in prepared.spec.cells()],
        **prepared.facts,
        "backbone": backbone_identity(prepared.spec.backbone),
        "versions": versions(),
        "code": code_version(),
        "runtime": runtime,
        **({"parts": parts} if (parts := recorded(prepared.spec, prepared.facts["metric"])) else {}),
    }
