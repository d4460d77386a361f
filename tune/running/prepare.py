"""Prepare a sweep's data: read, fold and tokenise (or decode) the training split once, and describe it for the manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from leebert.config import TrainConfig
from leebert.errors import ConfigError, DataError
from leebert.methods import applies
from leebert.provenance import backbone_identity, code_version, versions
from leebert.training_data import effective_task, load_training_data
from tune.machines.nodes import Stamp
from tune.running.crossval import Study
from tune.running.outside import OutsidePlugins, recorded
from tune.space import SweepSpec
from tune.space.spec import data_config
from tune.store.folder import SweepFolder


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The prepared training split of a space.

    Attributes:
        spec: The search space.
        problem: Samples, metric and model factory (:class:`leebert.problem.Problem`).
        folds: The validation folds (:class:`leebert.data.folds.Folds`).
        facts: What the manifest records of the data.
    """

    spec: SweepSpec
    problem: Any
    folds: Any
    facts: dict[str, Any]

    @property
    def outside(self) -> OutsidePlugins:
        """The plugins of other packages that trials use."""
        return OutsidePlugins.of(self.spec, self.facts["metric"])

    def study(self, folder: Path, device: str = "auto") -> Study:
        """Return the data and settings shared by all trials of a sweep in `folder`; `device` is auto, cpu or cuda."""
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
            stamp=Stamp.local(self.outside.packages),
            outside=self.outside,
            system_metrics=spec.tracking.system_metrics,
            evaluate=tuple(self.facts.get("evaluated", ())),
        )


def prepare(spec: SweepSpec, cache: Path) -> Prepared:
    """Read, subset, fold and tokenise (or decode) the training split; other splits only if the space has `evaluate`.

    Args:
        spec: The search space.
        cache: The folder of tokenised samples, which all nodes share.

    Returns:
        The prepared split.

    Raises:
        ConfigError: A method does not fit the network.
        DataError: The data can't be read, or a batch is larger than a fold's training part.
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
    """Prepare the task's evaluation splits: split → file, fingerprint of its samples."""
    if not task.eval_splits:
        raise DataError(f"task {task.name} declares no development split: remove `evaluate`, or declare the split")
    files = {}
    for split in task.eval_splits:
        path, fingerprint = loaded.split(split, spec.data.dir, cache)
        files[split] = (str(Path(path).resolve()), fingerprint)
    return files


def _check_model_and_batches(spec: SweepSpec, problem: Any, folds: Any) -> None:
    """Check weights, batch sizes and methods before the trials start, instead of in every trial."""
    from leebert.data.batches import size_of_fixed_d2, updates_per_epoch

    smallest = min(len(folds.train(fold)) for fold in range(folds.k))
    searched = spec.space["batch_size"].listed() if "batch_size" in spec.space else None
    searched_shares = spec.space["fixed_d2"].listed() if "fixed_d2" in spec.space else None
    shares: Sequence[Any] = searched_shares or (spec.training.get("fixed_d2"),)
    for size in searched or (spec.train_config({}).batch_size,):
        updates_per_epoch(smallest, int(size))
        for share in filter(None, shares):
            size_of_fixed_d2(smallest, int(size), share)
    for algorithm, error in misfits(spec, problem).items():
        raise ConfigError(f"method {algorithm} on {spec.backbone}: {error}") from None


def misfits(spec: SweepSpec, problem: Any) -> dict[str, ConfigError]:
    """Find the methods of a space that do not fit the network, and why; reads the backbone's weights.

    Args:
        spec: The search space.
        problem: The prepared problem.

    Returns:
        The first error of each such method.
    """
    from leebert.stages import check, method

    model = problem.model(spec.train_config({}))
    errors: dict[str, ConfigError] = {}
    for config in _reductions(spec):
        try:
            check(method(config, model.num_exits), model, config)
        except ConfigError as error:
            errors.setdefault(config.algorithm, error)
    return errors


def _reductions(spec: SweepSpec) -> Iterator[TrainConfig]:
    """Yield a configuration of every method; of a method that reduces the network, one per share that it keeps."""
    listed = spec.space["keep"].listed() if "keep" in spec.space else None
    for algorithm in spec.algorithms:
        shares = [{"keep": keep} for keep in listed] if listed and applies("keep", algorithm) else [{}]
        for share in shares:
            yield spec.train_config({"algorithm": algorithm, **share})


def manifest(
    prepared: Prepared, folder: SweepFolder, resolved: dict[str, Any], runtime: dict[str, Any]
) -> dict[str, Any]:
    """Make the contents of a sweep's manifest.json: everything that resuming needs and that scores depend on.

    Args:
        prepared: The prepared data.
        folder: The sweep's folder.
        resolved: The space as JSON-ready values.
        runtime: What trials run on (:meth:`leebert.runtime.Runtime.describe`).

    Returns:
        The manifest, JSON-ready.
    """
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
