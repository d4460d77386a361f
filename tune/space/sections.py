"""The sections of a search space: data, searcher, pruner, resources, budget and tracking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails

from leebert.config import Frozen, Subset
from leebert.errors import nearest
from leebert.findings import again
from leebert.plugins import Registry, unknown_advice
from tune.space.plugins import PRUNERS, SEARCHERS, Number, PrunerPlugin, SearcherPlugin, Whole


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


class PartSpec(Frozen):
    """A searcher or pruner by name, with its options, which are checked as the plugin declares them.

    An option that only other built-in plugins have does nothing: older versions wrote all options of all plugins into
    a sweep's space. It is kept unless it is the default, since it was part of the sweep's digest.
    """

    model_config = ConfigDict(extra="allow")

    registry: ClassVar[Registry[Any]]
    name: str

    @property
    def row(self) -> Any:
        """The plugin itself."""
        return self.registry[self.name]

    @property
    def options(self) -> Any:
        """Its options, in the model that the plugin declares."""
        kind = self.row.options
        return kind.model_validate({k: v for k, v in (self.model_extra or {}).items() if k in kind.model_fields})

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """Every key that some plugin takes, built in or not."""
        return tuple({"name": 0, **{option: 0 for row in cls.registry.values() for option in row.options.model_fields}})

    @field_validator("name", mode="before")
    @classmethod
    def _exists(cls, name: Any) -> Any:
        if isinstance(name, str) and name not in cls.registry:
            near = nearest(name, cls.registry)
            raise ValueError(f"should be one of {', '.join(cls.registry)}{near}; {unknown_advice(name)}")
        return name

    @model_validator(mode="wrap")
    @classmethod
    def _with_options(cls, values: Any, handler: ModelWrapValidatorHandler[PartSpec]) -> PartSpec:
        if not isinstance(values, Mapping):
            return handler(values)
        name = values.get("name", cls.model_fields["name"].default)
        extra = {key: value for key, value in values.items() if key != "name"}
        wrong: list[InitErrorDetails] = []
        checked: dict[str, Any] = {}
        selected = cls.registry.get(name) if isinstance(name, str) else None
        unselected = [row for row in cls.registry.own() if row.name != name]
        for row in (selected, *unselected) if selected else unselected:
            row_options = {key: extra.pop(key) for key in row.options.model_fields if key in extra}
            try:
                checked |= row.options.model_validate(row_options).model_dump(exclude_defaults=row is not selected)
            except ValidationError as error:
                wrong += again(error)
        if selected is None:
            try:
                return handler({"name": name})
            except ValidationError as error:
                wrong, extra = [*again(error), *wrong], {}  # the owner of the other keys is unknown
        wrong += [InitErrorDetails(type="extra_forbidden", loc=(key,), input=value) for key, value in extra.items()]
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return handler({"name": name, **checked})


class SearcherSpec(PartSpec):
    """The searcher, which proposes configurations, with its options."""

    registry: ClassVar[Registry[SearcherPlugin]] = SEARCHERS
    name: str = Field(default="grid", description="One of `SEARCHERS`; its options are further keys.")

    @property
    def configurations(self) -> int | None:
        """The number of configurations that it proposes; None if not given."""
        return (self.model_extra or {}).get("configurations")


class PrunerSpec(PartSpec):
    """The pruner, which may stop a configuration before its last cell, with its options."""

    registry: ClassVar[Registry[PrunerPlugin]] = PRUNERS
    name: str = Field(default="none", description="One of `PRUNERS`; its options are further keys.")


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
    system_metrics: bool = Field(
        default=False, description="Whether each epoch also records the use of CPU, memory and GPU of its worker."
    )
