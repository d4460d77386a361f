"""The sections of a search space: data, searcher, pruner, resources, budget and tracking."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from leebert.config import Frozen, Subset

SearcherName = Literal["grid", "random", "tpe"]
PrunerName = Literal["none", "racing", "halving"]


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number")  # pydantic would convert true to 1
    return value


Whole = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool)]


def expand_name(value: Any) -> Any:
    """Expand the short form ``searcher: grid`` to ``searcher: {name: grid}``."""
    return {"name": value} if isinstance(value, str) else value


def several(value: Any) -> Any:
    """Convert a single name to a list of names."""
    return [value] if isinstance(value, str) else value


class Data(Frozen):
    """The data: its folder, the part that is used, and which samples stay in the same fold."""

    dir: str | None = Field(default=None, description="Folder of the task's files.")
    subset: Subset | None = Field(default=None, description="A stratified part of the training split.")
    group_by: Annotated[tuple[str, ...], BeforeValidator(several)] | None = Field(
        default=None,
        description="Text columns whose equal values stay in the same fold, `containing`, `none`, or None: the task's.",
    )


class SearcherSpec(Frozen):
    """The searcher, which proposes configurations."""

    name: SearcherName = Field(default="grid", description="The whole grid, random draws, or Optuna's TPE.")
    configurations: Whole | None = Field(
        default=None, ge=1, description="Number of configurations to propose; not for a grid, which has a fixed number."
    )
    seed: Whole = Field(default=0, ge=0, description="Seed of the draws.")


class PrunerSpec(Frozen):
    """The pruner, which stops a configuration before its last run."""

    name: PrunerName = Field(default="none", description="No pruning, paired racing, or paired successive halving.")
    alpha: Number = Field(
        default=0.1, gt=0, lt=0.5, description="Racing: stop if the probability of catching up with the best is lower."
    )
    eta: Whole = Field(default=3, ge=2, description="Halving: one configuration in `eta` passes a rung.")
    min_epochs: Whole = Field(
        default=1, ge=1, description="Epochs before any pruning; halving's next rungs are at eta, eta², … times that."
    )


class Resources(Frozen):
    """The resources of one trial, and the number of concurrent trials."""

    cpus: Number = Field(default=1.0, gt=0, description="CPU cores of one trial.")
    gpus: Number = Field(
        default=0.0, ge=0, description="Share of a GPU per trial, at most 1; with 0.5, two trials share one."
    )
    concurrent: Whole | None = Field(
        default=None, ge=1, description="Trials at once; None: as many as the resources allow."
    )
    hang_minutes: Number = Field(
        default=30.0, gt=0, description="A trial that requests no batch for this time is ended and tried again."
    )


class Budget(Frozen):
    """The limits of the sweep; it stops at the first one that is reached."""

    trials: Whole | None = Field(default=None, ge=1, description="Configurations started.")
    fold_epochs: Whole | None = Field(default=None, ge=1, description="Epochs of all runs together.")
    hours: Number | None = Field(default=None, gt=0, description="Wall-clock hours.")
    gpu_hours: Number | None = Field(default=None, gt=0, description="Hours times the GPUs of the running trials.")


class Tracking(Frozen):
    """The address of MLflow."""

    uri: str | None = Field(
        default=None, description="Tracking server or folder; None: MLFLOW_TRACKING_URI, else MLflow's default."
    )
    experiment: str | None = Field(default=None, description="Name of the experiment; None: chosen by the sweep.")
