"""Export the model that a refit registers, and time its network in the exported form."""

from __future__ import annotations

import dataclasses
import functools
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leebert import live
from leebert.cli_options import INT8
from leebert.console import EXPORT_PACKAGES, missing_packages, require_packages
from leebert.errors import ConfigError
from leebert.evaluate import RecordedLogits
from leebert.exported.manifest import is_exported, read_manifest
from leebert.milliseconds import ExitMilliseconds
from leebert.operating_point import Aim
from leebert.thresholds import Chosen
from tune.analysis.latency import network, network_milliseconds
from tune.models.best_file import BestFile

log = logging.getLogger(__name__)

#: Values of `--export`.
FORMS = ("int8", "fp32", "none")

#: Most training samples of which some are timed.
_SAMPLES = 200


def form_of(requested: str | None) -> str:
    """Decide in which form a model is registered.

    Args:
        requested: One of :data:`FORMS`; None: int8 if the packages of an export are installed, else none.

    Raises:
        ConfigError: There is no such form, or its packages are not installed.
    """
    if requested is None:
        if missing := missing_packages(*EXPORT_PACKAGES):
            log.warning(
                f"the registered model will run in PyTorch, since {', '.join(missing)} is not installed: to export it, "
                "pip install 'leebert-sweep[export]'"
            )
            return "none"
        return "int8"
    if requested not in FORMS:
        raise ConfigError(f"--export {requested}: should be {', '.join(FORMS[:-1])} or {FORMS[-1]}")
    if requested != "none":
        require_packages("export", *EXPORT_PACKAGES)
    return requested


def int8_of(form: str) -> str | None:
    """The kind of int8 of a form; None for float32."""
    return INT8 if form == "int8" else None


def time_network(best: BestFile, form: str, criterion: str, patience: int | None) -> ExitMilliseconds:
    """Measure the time up to each exit of a best file's network, before it is trained.

    Args:
        best: The best file.
        form: The form in which it will be registered; `none`: PyTorch's times, if the packages of an export are missing.
        criterion: The exit criterion whose decisions are timed.
        patience: Its second parameter; None: the default.

    Returns:
        The times on training samples, at batch size 1 on one thread.
    """
    from leebert.kinds import kind_of
    from leebert.training_data import effective_task

    config = best.config
    task = effective_task(config.task, config.data.group_by)
    kind = kind_of(task)
    examples = kind.read(task, "train", config.data.dir)
    some = examples.take(np.linspace(0, len(examples) - 1, min(_SAMPLES, len(examples))).astype(int))
    with tempfile.TemporaryDirectory() as cache:
        rows = kind.prepare(some, task, config.model, kind.tokenizer(task, config.model), Path(cache))
        model = network(kind.footprint(task, config.model), config.training)
        return network_milliseconds(model, rows, criterion, patience, int8=int8_of(form))


def export_model(
    folder: Path, out: Path, form: str, recorded: RecordedLogits, source: str, own: Chosen, aim: Aim, name: str | None
) -> None:
    """Export a refit's model, unless an interrupted refit has.

    Exits, threshold and curves are chosen on the validation logits of cross-validation, as those of the model are; the
    development split gives only scores and the texts that are timed.

    Args:
        folder: The saved model.
        out: The folder to write.
        form: `int8` or `fp32`.
        recorded: The validation logits.
        source: What they are, in words.
        own: The model's exit criterion with its threshold.
        aim: What the threshold is chosen for.
        name: The model's name in messages and pages; None: that of the folder.

    Raises:
        ConfigError: The model can't be exported.
        DataError: The task has no development split, or fewer than 30 samples there.
    """
    from leebert.export.command import Options, Validated
    from leebert.export.command import export_model as export

    if is_exported(out):
        return
    options = Options(
        int8=int8_of(form), criterion=own.criterion, aim=aim, validated=Validated(recorded, source), name=name
    )  # fmt: skip
    export(folder, out, options, functools.partial(live.track, what="samples"))


def evaluate_export(folder: Path, best: BestFile, timed_rows: int) -> dict[str, Any]:
    """Evaluate an exported model on the task's development splits.

    Args:
        folder: The exported folder.
        best: The best file of its refit.
        timed_rows: Most samples to time.

    Returns:
        JSON-ready values: `precision`, `exits`, `exit_layers`, `megabytes`, and `splits`, each split's
        :func:`leebert.export.evaluation.evaluate_exported`.
    """
    from leebert.data.sources import read_split
    from leebert.data.tasks import get_task
    from leebert.export.evaluation import evaluate_exported
    from leebert.exported.model import ExportedModel

    task = get_task(best.config.task)
    model = ExportedModel.load(folder)
    splits: dict[str, Mapping[str, Any]] = {}
    for split in task.eval_splits:
        examples = read_split(task, split, best.config.data.dir)
        splits[split] = evaluate_exported(
            model, examples, task.metric, timed_rows=timed_rows,
            progress=functools.partial(live.track, what=f"exported model on {split}"),
        )  # fmt: skip
    manifest = read_manifest(folder)
    return {
        "folder": folder.name,
        "precision": manifest.precision,
        "exits": dataclasses.asdict(manifest.exits),
        "exit_layers": list(manifest.exit_layers),
        "megabytes": sum((folder / segment.file).stat().st_size for segment in manifest.segments) / 1e6,
        "splits": splits,
    }
