"""The sections of a search space: data, searcher, pruner, resources, budget and tracking."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from leebert.config import Frozen, Subset

SearcherName = Literal["grid", "random", "tpe"]
PrunerName = Literal["none", "racing", "halving"]


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number")  # pydantic would take true for 1
    return value


Whole = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool)]


def named(value: Any) -> Any:
    """The short form ``searcher: grid`` for ``searcher: {name: grid}``."""
    return {"name": value} if isinstance(value, str) else value


def several(value: Any) -> Any:
    """A single name where a list of names is expected."""
    return [value] if isinstance(value, str) else value


class Data(Frozen):
    """Which rows, and which of them stay together in a fold."""

    dir: str | None = Field(default=None, description="Folder of the task's files.")
    subset: Subset | None = Field(default=None, description="A stratified part of the training split.")
    group_by: Annotated[tuple[str, ...], BeforeValidator(several)] | None = Field(
        default=None,
        description="Text columns whose equal values stay on one side of a fold, `containing`, `none`, or None: the task's.",
    )


class SearcherSpec(Frozen):
    """Who proposes configurations."""

    name: SearcherName = Field(default="grid", description="All of the grid, seeded draws, or Optuna's TPE.")
    configurations: Whole | None = Field(
        default=None, ge=1, description="How many to propose; a grid has all of its own."
    )
    seed: Whole = Field(default=0, ge=0, description="Seed of the draws.")


class PrunerSpec(Frozen):
    """Who stops a configuration before its last cell."""

    name: PrunerName = Field(default="none", description="Nobody, paired racing, or paired successive halving.")
    alpha: Number = Field(
        default=0.1, gt=0, lt=0.5, description="Racing: stop where the chance to catch up with the best is lower."
    )
    eta: Whole = Field(default=3, ge=2, description="Halving: one configuration in so many passes a rung.")
    min_epochs: Whole = Field(
        default=1, ge=1, description="Epochs before anyone stops; halving's next rungs are at eta, eta², … times that."
    )


class Resources(Frozen):
    """What one trial occupies, and how many run at once."""

    cpus: Number = Field(default=1.0, gt=0, description="CPU cores of one trial.")
    gpus: Number = Field(
        default=0.0, ge=0, description="The share of a GPU that one trial has, at most 1; 0.5 lets two share one."
    )
    concurrent: Whole | None = Field(
        default=None, ge=1, description="Trials at once; None: as many as the resources allow."
    )
    hang_minutes: Number = Field(
        default=30.0, gt=0, description="A trial that asks for no batch in so long is ended and tried again."
    )


class Budget(Frozen):
    """When the sweep stops early; whichever comes first."""

    trials: Whole | None = Field(default=None, ge=1, description="Configurations started.")
    fold_epochs: Whole | None = Field(default=None, ge=1, description="Epochs of all cells together.")
    hours: Number | None = Field(default=None, gt=0, description="Hours by the clock.")
    gpu_hours: Number | None = Field(default=None, gt=0, description="Hours times the GPUs of the running trials.")


class Tracking(Frozen):
    """Where MLflow is."""

    uri: str | None = Field(
        default=None, description="Tracking server or folder; None: MLFLOW_TRACKING_URI, else MLflow's default."
    )
    experiment: str | None = Field(default=None, description="Name of the experiment; None: chosen by the sweep.")
