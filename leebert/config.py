"""Configurations: frozen and typed, with one sentence and the source of each field.

Unknown keys are errors. :func:`parse` reports all errors of a mapping together, with the nearest valid key.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, InitErrorDetails

from leebert.errors import ConfigError, nearest
from leebert.exits import CRITERIA, DEFAULT, threshold_problem, without_patience
from leebert.exits.stored import with_criterion
from leebert.findings import again, findings_of, keys_below, lines
from leebert.methods import METHODS
from leebert.plugins import unknown_advice
from leebert.standard_options import LARGEST as LARGEST
from leebert.standard_options import Frozen as Frozen
from leebert.standard_options import Precision as Precision
from leebert.standard_options import StandardOptions

Pooling = Literal["pooler", "cls", "mean"]


def _method(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"should be one of {', '.join(METHODS)}{nearest(name, METHODS)}; {unknown_advice(name)}")
    return name


def _criterion(name: str) -> str:
    if name not in CRITERIA:
        raise ValueError(CRITERIA.unknown(name))
    return name


class _ListsMethods:
    """Lists the methods' names in the JSON schema of a field."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": list(METHODS)}


AlgorithmName = Annotated[str, AfterValidator(_method), _ListsMethods()]
CriterionName = Annotated[str, AfterValidator(_criterion)]


class TrainConfig(StandardOptions):
    """Training options of one model. Defaults are the paper's if it states them, else ours.

    A method's own options (:attr:`leebert.methods.Method.own_options`) stand beside the fields in what is read and
    written, and in :attr:`own` of the object. Every other key is an error.

    Raises:
        pydantic.ValidationError: A key is unknown, or a value is out of range; :func:`parse` makes it a ConfigError.
    """

    algorithm: AlgorithmName = Field(
        StandardOptions.model_fields["algorithm"].default,
        description=StandardOptions.model_fields["algorithm"].description,
    )
    _own: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def own(self) -> dict[str, Any]:
        """The method's own options by name, with defaults for those that were not given."""
        return dict(self._own)

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """Return all options: the fields, then methods' own options."""
        methods = METHODS.values()
        return tuple(dict.fromkeys((*cls.model_fields, *(option for row in methods for option in row.own_fields))))

    @model_validator(mode="wrap")
    @classmethod
    def _with_own_options(cls, values: Any, handler: ModelWrapValidatorHandler[TrainConfig]) -> TrainConfig:
        if not isinstance(values, Mapping):
            return handler(values)
        name = values.get("algorithm", cls.model_fields["algorithm"].default)
        method = METHODS.get(name) if isinstance(name, str) else None
        if method is None or method.own_options is None:
            return handler(values)
        errors: list[InitErrorDetails] = []
        own: dict[str, Any] = {}
        try:
            others = {key: value for key, value in values.items() if key not in cls.model_fields}
            own = method.own_options.model_validate(others).model_dump()
        except ValidationError as error:
            errors = again(error)
        try:
            config = handler({key: value for key, value in values.items() if key in cls.model_fields})
            config._own = own
        except ValidationError as error:
            errors = [*again(error), *errors]
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        if method.conflict and (problem := method.conflict(config)):
            raise ValueError(problem)
        return config

    @model_serializer(mode="wrap")
    def _with_own(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        own = {
            key: value
            for key, value in self._own.items()
            if not (info.exclude and key in info.exclude) and not (info.exclude_none and value is None)
        }
        return {**handler(self), **own}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy the configuration, as pydantic does: without a check of the fields.

        Args:
            update: New values by name. A method's own options are checked, and another method has its own ones, at their
                defaults where `update` lacks them.
            deep: Whether to copy the values, too.

        Returns:
            The copy.

        Raises:
            pydantic.ValidationError: The method has no such option of its own, or the option no such value.
        """
        fields = {key: value for key, value in (update or {}).items() if key in type(self).model_fields}
        given = {key: value for key, value in (update or {}).items() if key not in fields}
        copy = super().model_copy(update=fields, deep=deep)
        if given or copy.algorithm != self.algorithm:
            kept = self._own if copy.algorithm == self.algorithm else {}
            copy._own = (METHODS[copy.algorithm].own_options or Frozen).model_validate({**kept, **given}).model_dump()
        return copy


#: Options that change only memory and speed. They are not searched, and a run may resume with other values.
COST_ONLY: frozenset[str] = frozenset({"accumulate", "eval_batch_size"})


class ModelConfig(Frozen):
    """The encoder and the pooling before its classifiers; for images only the backbone.

    Raises:
        pydantic.ValidationError: A key is unknown, or a value is out of range; :func:`parse` makes it a ConfigError.
    """

    backbone: str = Field(
        description="Hub id (with optional @revision), folder, or package:NAME/path; for images a name such as resnet56."
    )
    pooling: Pooling = Field(
        "pooler",
        description="Pooling before each classifier: shared pretrained pooler, CLS state, or mean over tokens.",
    )
    max_length: int = Field(128, ge=4, description="Tokens per sample; longer ones are truncated and counted (ours).")


class Subset(Frozen):
    """A stratified random part of the training split; it changes the data's fingerprint."""

    rows: int = Field(ge=2, description="Number of samples.")
    seed: int = Field(0, ge=0, description="Seed of the random choice.")


class ExitConfig(Frozen):
    """The exit criterion with its parameters.

    Each criterion (:data:`leebert.exits.CRITERIA`) defines the meaning and range of its parameters. `strategy`, the key of
    earlier versions, is read as `criterion`.

    Raises:
        pydantic.ValidationError: The criterion is unknown, or has no such parameter or value.
    """

    criterion: CriterionName = Field(
        DEFAULT, description="The exit criterion (sections 2.3, 4.4; PCEE-BERT, F-PABEE, BEEM)."
    )
    threshold: float | None = Field(
        None, description="Threshold; None: round(M/3) for patience (the paper's 4 at M = 12)."
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="For pcee and f-pabee: number of consecutive exits. None: 2 for pcee (as published; at most M-1), round(M/6) "
        "for f-pabee (ours).",
    )

    @model_validator(mode="before")
    @classmethod
    def _rename_former_keys(cls, values: Any) -> Any:
        return with_criterion(values)

    @property
    def strategy(self) -> str:
        """The former name of `criterion`."""
        warnings.warn("ExitConfig.strategy is deprecated: use criterion", DeprecationWarning, stacklevel=2)
        return self.criterion

    @model_validator(mode="after")
    def _check_parameters(self) -> ExitConfig:
        row = CRITERIA[self.criterion]
        if not row.has_threshold and self.threshold is not None:
            raise ValueError(f"criterion {self.criterion!r} has no threshold")
        if self.patience is not None and (problem := without_patience(self.criterion)):
            raise ValueError(problem)
        if row.has_threshold and self.threshold is None and row.default is None:
            raise ValueError(f"criterion {self.criterion!r} needs a threshold")
        if self.threshold is not None and (problem := threshold_problem(self.criterion, self.threshold)):
            raise ValueError(problem)
        return self

    def overridden(self, **options: Any) -> dict[str, Any]:
        """Override some values; None keeps a value, and another criterion drops the parameters of this one.

        Args:
            **options: New values of `criterion`, `threshold` and `patience`.

        Returns:
            The values of the new ExitConfig, unchecked.
        """
        values = {key: value for key, value in options.items() if value is not None}
        return {**self.model_dump(), **values} if values.get("criterion", self.criterion) == self.criterion else values


class AimConfig(Frozen):
    """The aim of training's choice of exit criterion and threshold on the validation fold.

    Without `max_loss` and `speed_up`: at most 1 point below the full model, with a layer speed-up of 2 as fallback
    (:class:`leebert.operating_point.Aim`).
    """

    criterion: CriterionName | None = Field(
        None,
        description="The exit criterion; None: the method's published one if that needs a threshold, else the best one.",
    )
    max_loss: float | None = Field(
        None, ge=0, le=100, description="Largest drop in score against the full model, in points."
    )
    speed_up: float | None = Field(None, ge=1, description="Target layer speed-up, depth / mean exit layer.")

    @model_validator(mode="after")
    def _has_a_threshold(self) -> AimConfig:
        if self.criterion is not None and not CRITERIA[self.criterion].has_threshold:
            raise ValueError(
                f"criterion {self.criterion!r} has no threshold to choose; leave the aim out, and set exits.criterion"
            )
        return self


Model = TypeVar("Model", bound=BaseModel)


def parse(
    model: type[Model],
    values: Mapping[str, Any],
    where: str,
    sources: Mapping[str, str] | None = None,
    earlier: Sequence[str] = (),
) -> Model:
    """Validate values as a configuration.

    Args:
        model: The configuration's class.
        values: The keys and values.
        where: Their file or option, for messages.
        sources: Dotted key → the option that set it, for messages.
        earlier: Lines of errors that are known already; they are raised together with those of the values.

    Raises:
        ConfigError: Lists all errors, a line ``where: key: value: what was expected`` for each.
    """
    errors = list(earlier)
    try:
        parsed = model.model_validate(values)
    except ValidationError as error:
        errors += lines(findings_of(error, keys_below(model)), where, sources)
    if errors:
        raise ConfigError("\n".join(errors))
    return parsed
