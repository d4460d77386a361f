"""Train a model from a configuration and save it in a folder, as `leebert train` does."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from leebert import live
from leebert.config import AimConfig, ExitConfig, Frozen, ModelConfig, TrainConfig
from leebert.errors import ConfigError, DataError, DivergedError
from leebert.exits import FULL_MODEL
from leebert.files import write_atomically
from leebert.kinds import kind_of
from leebert.methods import METHODS, applies, specific
from leebert.training_data import DataConfig, TrainingData, effective_task, read_training_examples
from leebert.training_options import idle

if TYPE_CHECKING:
    from leebert.data.tasks import AnyTask
    from leebert.evaluate import RecordedLogits
    from leebert.problem import Problem
    from leebert.record import SampleSet
    from leebert.runtime import Runtime
    from leebert.thresholds import Chosen
    from leebert.train import EpochReport, TrainResult

#: The validation fold of `leebert train` is one of this number of folds.
HOLD_OUT_FOLDS = 5

#: The wording of errors about it (:class:`leebert.data.folds.FoldMessages`), since `leebert train` has no option `folds`.
_HOLD_OUT = (
    "a validation fold of 1/{k} for early stopping",
    "with validation fold {fold} of {k} for early stopping",
    "add samples, or train without a validation fold (--no-hold-out)",
    "give other groups (--set data.group_by=none), another seed (--set training.seed=1) or --no-hold-out",
)

#: In a model's folder: the checkpoints to resume from, and the summary that training writes last.
CHECKPOINTS, SUMMARY = ".checkpoints", "training.json"


class RunConfig(Frozen):
    """The configuration of one training run. A best file is one, with `theta_updates` and `found` set."""

    task: str | dict[str, Any] = Field(
        description="One of GLUE's seven tasks, cifar10, cifar100, or the declaration of a task."
    )
    model: ModelConfig
    data: DataConfig = Field(default_factory=lambda: DataConfig())
    training: TrainConfig = Field(default_factory=lambda: TrainConfig())
    exits: ExitConfig = Field(default_factory=lambda: ExitConfig())
    aim: AimConfig = Field(default_factory=lambda: AimConfig())
    theta_updates: int | None = Field(
        None, ge=1, description="Train for this many updates on the whole training split, without a validation fold."
    )
    found: dict[str, Any] | None = Field(
        None, description="In a best file: the sweep and scores that selected it; training only compares them."
    )

    @field_validator("task")
    @classmethod
    def _canonical_task(cls, task: str | dict[str, Any]) -> str | dict[str, Any]:
        from leebert.data.tasks import canonical_name

        return canonical_name(task) if isinstance(task, str) else task


def _check_provenance(search: dict[str, Any], fingerprint: str, backbone: str, runtime: Any) -> None:
    """Warn where this run differs from the sweep of a best file; raises DataError for other data."""
    from leebert.outside import origins
    from leebert.provenance import backbone_identity, code_version, differences, versions

    if search.get("data_fingerprint") not in (None, fingerprint):
        raise DataError(
            "found.data_fingerprint: the sweep that produced this best file used other training data; give its data with "
            "--data-dir, or remove found and theta_updates from the file to train on this data"
        )
    identity = {
        "backbone": backbone_identity(backbone),
        "code": code_version(),
        "versions": versions(),
        "parts": origins(search.get("parts") or ()),
        "runtime": runtime.describe(),
    }
    for line in differences(search, identity):
        warnings.warn(f"differs from the sweep that produced this best file: {line}", stacklevel=2)


def own_exits(config: RunConfig) -> ExitConfig:
    """The exit criterion of a trained model: as configured; `never` for a method with one exit if none is configured."""
    one_exit = METHODS[config.training.algorithm].one_exit
    return ExitConfig(criterion=FULL_MODEL) if one_exit and not _names_exits(config) else config.exits


def chooses_exits(config: RunConfig) -> bool:
    """Whether training chooses the exit criterion on the validation fold: if the configuration names none."""
    return not METHODS[config.training.algorithm].one_exit and not _names_exits(config)


def _names_exits(config: RunConfig) -> bool:
    """Whether the configuration names an exit criterion. Best files of version 0.1 always hold the default, which is ignored."""
    return "exits" in config.model_fields_set and not (config.found and config.exits == ExitConfig())


def _check_aim(config: RunConfig, hold_out: bool) -> None:
    """Raise ConfigError for an aim without an exit criterion to choose."""
    if not config.aim.model_fields_set:
        return
    if not hold_out:
        reason = "--no-hold-out" if config.theta_updates is None else "theta_updates trains on the whole training split"
        raise ConfigError(
            f"aim: the choice of an exit criterion needs a validation fold, and there is none ({reason}); leave the aim out, and "
            "run leebert calibrate after training"
        )
    if METHODS[config.training.algorithm].one_exit:
        raise ConfigError(
            f"aim: {config.training.algorithm} trains one exit, so there is no exit criterion to choose; leave the aim out"
        )
    if _names_exits(config):
        raise ConfigError(
            "aim: `exits` already sets the exit criterion and threshold; leave out exits or aim (aim.criterion sets a "
            "criterion whose threshold is chosen)"
        )


def _chosen_exits(config: RunConfig, recorded: RecordedLogits, metric: str) -> Chosen:
    """Choose the exit criterion and threshold for the configuration's aim on recorded validation samples."""
    from leebert.operating_point import Aim, choose_exits

    method, aim = METHODS[config.training.algorithm], Aim.of(config.aim.max_loss, config.aim.speed_up)
    criterion = config.aim.criterion or method.own_criterion
    return choose_exits(recorded, metric, aim, criterion, published=method.exits)


def _keep_curves(config: RunConfig, recorded: RecordedLogits, metric: str, out: Path, own: Chosen | None) -> None:
    """Save the layer speed-up and validation score of each threshold beside the model."""
    from leebert.thresholds import FILE, curves, curves_as_json

    chosen_on = f"{recorded.logits.shape[1]} validation samples of the training split"
    saved = curves(recorded, config.exits.patience, metric=metric)
    write_atomically(out / FILE, curves_as_json(saved, len(recorded.logits), chosen_on, own))


def _stages(model: Any, config: RunConfig, rows: SampleSet, reports: Sequence[EpochReport]) -> dict[str, Any]:
    """Collect the scores at each stage's end, and its network's costs for a sample of mean length."""
    import numpy as np

    from leebert.operations import of_stages

    lengths = np.asarray(rows.lengths)
    length = float(lengths.mean())
    batch = rows.collate([int(np.argmin(np.abs(lengths - length)))])
    stages = []
    for costs in of_stages(model, config.training, batch):
        epochs = [report for report in reports if report.stage == costs.stage]
        if epochs:
            stages.append(
                {
                    "stage": costs.stage,
                    "epochs": len(epochs),
                    "score": epochs[-1].score,
                    "exits": epochs[-1].exits.get("score", []),
                    "parameters": costs.parameters.total,
                    "multiply_adds": list(costs.multiply_adds),
                }
            )
    return {"stages": stages, "stages_length": length}


def check_options(config: RunConfig) -> None:
    """Raise ConfigError for a given training option that the method, or its other options, make ineffective."""
    if config.found:  # a best file holds all options of its sweep
        return
    algorithm = config.training.algorithm
    options = {
        option: getattr(config.training, option) for option in sorted(config.training.model_fields_set & specific())
    }
    if unused := [option for option in options if not applies(option, algorithm)]:
        raise ConfigError(
            f"training.{unused[0]}: {algorithm} has no such option; leave out {', '.join(unused)} (leebert methods --json lists "
            "the options of each method)"
        )
    for option in options:
        if reason := idle(option, algorithm, options):
            raise ConfigError(f"training.{option}: has no effect: {reason}; leave it out")


def is_unfinished(out: Path) -> bool:
    """Whether a folder holds the checkpoints of an interrupted training run, which can resume."""
    return (out / CHECKPOINTS).exists() and not (out / SUMMARY).exists()


def train_model(
    config: RunConfig,
    out: Path,
    *,
    device: str = "auto",
    hold_out: bool = True,
    cache: Path | None = None,
    report: Callable[[Any], None] | None = None,
    on_step: Callable[[int], None] | None = None,
    on_plan: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Train a model and save it with its tokenizer, thresholds and `training.json`.

    By default one grouped fold of the training split serves as validation fold for early stopping, and the best epoch's
    weights are saved. With `theta_updates`, or without `hold_out`, the model trains on the whole split, and no evaluation
    data is read. An interrupted run resumes from its last epoch if it is started again with the same `out`.

    Args:
        config: The configuration.
        out: Folder for the model.
        device: auto, cpu, cuda or cuda:N.
        hold_out: Whether to keep a validation fold.
        cache: Folder for tokenised data; None: a temporary folder in `out`.
        report: Called with each epoch's report.
        on_step: Called with the number of θ updates after each update.
        on_plan: Called with the planned number of θ updates before training.

    Returns:
        The values of `training.json`.

    Raises:
        ConfigError: The configuration contradicts itself or the model.
        DataError: The data are bad.
        DivergedError: A loss, gradient or weight was not finite.
    """
    from leebert.checkpoint import BestWeights, Checkpoints
    from leebert.runtime import Runtime
    from leebert.train import fit

    live.phase("reading the training split")
    runtime = Runtime.of(config.training.precision, device)
    task = effective_task(config.task, config.data.group_by)
    read = read_training_examples(task, config.data, config.model)
    if config.found:
        _check_provenance(config.found, read.examples.fingerprint(), config.model.backbone, runtime)
    hold_out = hold_out and config.theta_updates is None
    _check_aim(config, hold_out)
    live.phase("loading the backbone")
    problem = kind_of(task).problem(task, config.model, exits=own_exits(config))
    model = _new_model(config, problem, task, runtime, hold_out)
    live.phase("tokenising or decoding the samples")
    data = read.prepare(cache or out / ".cache")
    rows, held_out = _divided(config, data, hold_out)
    if on_plan:
        on_plan(_planned_updates(config, model.num_exits, len(rows)))

    live.phase("training: the first update")
    out.mkdir(parents=True, exist_ok=True)
    checkpoints, best_weights = Checkpoints(out / CHECKPOINTS), BestWeights(out / CHECKPOINTS)

    def after_epoch(epoch: EpochReport) -> None:
        best_weights.checkpointed(epoch.best_epoch)
        if report:
            report(epoch)

    result = fit(
        model, rows, config.training, validation=held_out, metric=task.metric, runtime=runtime,
        seed=(config.training.seed,), updates=config.theta_updates, checkpoints=checkpoints,
        on_best=best_weights.keep, on_step=on_step, report=after_epoch,
        identity={"data": data.examples.fingerprint(), "model": config.model.model_dump(), "group_by": str(task.group_by)},
    )  # fmt: skip
    if result.ended == "diverged":
        raise DivergedError(
            f"training diverged after {result.reports[-1].theta_updates} updates (a loss, gradient or weight was not finite); "
            f"lower training.lr_theta (now {config.training.lr_theta:g}); {checkpoints.folder} holds the last finite epoch"
        )
    live.phase("choosing the exit criterion, and saving the model")
    model = result.model
    if hold_out:
        model.load_state_dict(best_weights.load(result.best.epoch))
    chosen = _choose(config, model, result.validation, task.metric, out)
    summary = {
        **_summary(config, data, result, runtime, len(rows), 0 if held_out is None else len(held_out), chosen),
        **_stages(problem.model(config.training), config, data.rows, result.reports),
    }
    data.save(model, out)
    # Written last: this file marks a complete folder. Until then the checkpoints stay, to resume from.
    write_atomically(out / SUMMARY, json.dumps(summary, indent=1))
    checkpoints.clear()
    shutil.rmtree(out / ".cache", ignore_errors=True)
    return summary


def _new_model(config: RunConfig, problem: Problem, task: AnyTask, runtime: Runtime, hold_out: bool) -> Any:
    """Make the model before training. Raises ConfigError for options that don't fit it, before samples are tokenised."""
    import torch

    from leebert.exits.checks import check_threshold, warn_if_unreachable
    from leebert.runtime import derive_seed
    from leebert.stages import check, method
    from leebert.thresholds import check_speed_up

    torch.manual_seed(derive_seed(config.training.seed, "init"))
    model = problem.model(config.training)
    exits = own_exits(config)
    remaining = 1 if METHODS[config.training.algorithm].one_exit else model.num_exits
    check_threshold(exits, remaining, len(task.label_names))
    check(method(config.training, model.num_exits), model, config.training)
    if config.aim.speed_up is not None:
        check_speed_up(config.aim.speed_up, model.exit_layers, model.depth)
    if not (hold_out and chooses_exits(config)):
        warn_if_unreachable(exits, remaining)
    model.config.precision = runtime.precision
    model.config.task = config.task
    model.config.metric = task.metric
    return model


def _divided(config: RunConfig, data: TrainingData, hold_out: bool) -> tuple[SampleSet, SampleSet | None]:
    """Split the samples into training samples and, with `hold_out`, one grouped validation fold."""
    if not hold_out:
        return data.rows, None
    from leebert.data.batches import RowSubset
    from leebert.data.folds import FoldMessages, make_folds

    folds = make_folds(data.examples, data.task, HOLD_OUT_FOLDS, config.training.seed, FoldMessages(*_HOLD_OUT))
    return RowSubset(data.rows, folds.train(0)), RowSubset(data.rows, folds.held_out(0))


def _planned_updates(config: RunConfig, num_exits: int, samples: int) -> int:
    """Count the updates of θ of all stages without early stops."""
    from leebert.data.batches import updates_per_epoch
    from leebert.stages import epochs_of, last_training, method

    longest = epochs_of(method(config.training, num_exits), config.training)
    limited = last_training(longest)
    per_epoch = updates_per_epoch(samples, config.training.batch_size)
    return per_epoch * sum(longest[:limited]) + (config.theta_updates or per_epoch * longest[limited])


def _choose(config: RunConfig, model: Any, recorded: RecordedLogits | None, metric: str, out: Path) -> Chosen | None:
    """Choose the operating point on the validation samples, set it in the model, and save the curves."""
    if recorded is None or model.num_exits == 1:
        return None
    chosen: Chosen | None = None
    if chooses_exits(config):
        chosen = _chosen_exits(config, recorded, metric)
        model.config.exit_strategy, model.config.exit_threshold = chosen.criterion, chosen.threshold
        model.config.exit_patience = chosen.patience
    _keep_curves(config, recorded, metric, out, chosen)
    return chosen


def _summary(
    config: RunConfig,
    data: TrainingData,
    result: TrainResult,
    runtime: Runtime,
    trained: int,
    held_out: int,
    chosen: Chosen | None,
) -> dict[str, Any]:
    """Collect the values of `training.json`. `trained` and `held_out` are numbers of samples."""
    from leebert.outside import origins

    criterion = chosen.criterion if chosen else own_exits(config).criterion
    plugins = (f"method {config.training.algorithm}", f"exit criterion {criterion}", f"metric {data.task.metric}")
    parts = origins(plugins)
    return {
        "config": config.model_dump(mode="json", exclude_none=True, exclude={"found"}),
        "rows": trained,
        "split_rows": data.split_rows,
        "held_out_rows": held_out,
        "truncated_rows": data.truncated_rows,
        "skipped_rows": data.examples.skipped,
        "data_fingerprint": data.examples.fingerprint(),
        "runtime": runtime.describe(),
        "ended": result.ended,
        "theta_updates": result.reports[-1].last_stage_updates,
        "best_epoch": result.best.epoch,
        "score": result.best.score,
        "majority": result.best.majority,
        "chosen": chosen and dataclasses.asdict(chosen),
        **({"parts": parts} if parts else {}),
        "epochs": [r.plain() for r in result.reports],
    }
