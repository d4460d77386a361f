"""Configurations: frozen and typed, with one sentence and the source of each field.

Unknown keys are errors. :func:`parse` reports all errors of a mapping together, with the nearest valid key.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, InitErrorDetails

from leebert.errors import ConfigError, nearest
from leebert.exits import CRITERIA, DEFAULT, threshold_problem, without_patience
from leebert.exits.stored import with_criterion
from leebert.findings import again, findings_of, keys_below, lines
from leebert.methods import METHODS, own_options
from leebert.plugins import unknown_advice

TeacherSet = Literal["lae", "lle", "last", "none"]
Parametrisation = Literal["raw", "softplus", "exit_softmax", "group_softmax"]
Pooling = Literal["pooler", "cls", "mean"]
Precision = Literal["auto", "fp32", "bf16"]


def _positive_rate(value: float) -> float:
    if not 0 < value < float("inf"):
        raise ValueError("should be a finite number above 0")
    return value


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


Rate = Annotated[float, AfterValidator(_positive_rate)]
AlgorithmName = Annotated[str, AfterValidator(_method), _ListsMethods()]
CriterionName = Annotated[str, AfterValidator(_criterion)]


#: The largest whole number of any option; larger sizes and seeds overflow in the underlying libraries.
LARGEST = 2**31 - 1


class Frozen(BaseModel):
    """Base class of configurations: immutable, unknown keys are errors, whole numbers are at most :data:`LARGEST`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _within_reach(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ValueError(f"should be at most {LARGEST}")
        return value


class TrainConfig(Frozen):
    """Training options of one model. Defaults are the paper's if it states them, else ours.

    A method's own options (:attr:`leebert.methods.Method.own_options`) are further fields, with the checks of their
    declaration. Every other key is an error. Each field's description states its meaning and source.

    Raises:
        pydantic.ValidationError: A key is unknown, or a value is out of range; :func:`parse` makes it a ConfigError.
    """

    model_config = ConfigDict(extra="allow")

    algorithm: AlgorithmName = Field(
        "clo-v2", description="The method: an optimiser of ω (sections 3.3-3.4) or a baseline (table 1)."
    )
    lr_theta: Rate = Field(1e-5, description="λ1, the peak learning rate of θ (table 3; chosen for 5 of 7 tasks).")
    lr_omega: Rate = Field(
        1e-4, description="λ2, the learning rate of ω (table 3, MRPC). SLO, BLO, hyper and CLO use it."
    )
    cycle_length: int = Field(4, ge=1, description="C, θ steps per use of D2 (algorithm 2; 4 in table 3). CLO-v2 only.")
    batch_size: int = Field(32, ge=1, description="B, samples per θ step (table 3).")
    accumulate: int = Field(
        1,
        ge=1,
        description="Split a batch into this many parts for forward and backward, to save memory. Updates stay the same except "
        "for rounding, dropout masks and BatchNorm, which normalises each part separately (ours).",
    )
    max_epochs: int = Field(
        10, ge=1, description="Epochs of ⌊|D_train| / 2B⌋ θ updates each, and the schedule's horizon (ours)."
    )
    patience: int = Field(
        5, ge=1, description="Stop early after this many epochs without a better score (section 4.4)."
    )
    warmup: float = Field(
        0.1, ge=0, lt=1, description="Share of the updates with a rising learning rate, before the schedule (ours)."
    )
    theta_optimizer: Literal["adamw", "sgd"] = Field(
        "adamw", description="θ's optimiser: Adam for text, SGD for images (section 4)."
    )
    momentum: float = Field(
        0.9, ge=0, lt=1, description="SGD's momentum on θ, without Nesterov's (He et al. 2015); AdamW has none."
    )
    schedule: Literal["linear", "steps"] = Field(
        "linear",
        description="λ1 after the warm-up: linear decay to 0 (ours), or division by 10 at 35, 60 and 85 % of the updates "
        "(Shallow-Deep, for images).",
    )
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="The optimiser's weight decay on θ; 0 is the paper's Adam, 1e-4 He et al.'s SGD. Never on ω.",
    )
    clip_norm: float = Field(
        1.0, gt=0, description="Clip θ's gradient at this norm; ω's gradient is not clipped (ours)."
    )
    gradient_equilibrium: bool = Field(
        False, description="Average, not sum, the gradients of the exits above each layer (Li et al. 2019)."
    )
    teachers: TeacherSet = Field(
        "lae", description="Teachers T(m) of exit m (section 3.1): all other exits, later exits, the last exit, none."
    )
    temperature: float = Field(1.0, gt=0, description="τ of the distillation (eqs. 2-3; not given in the paper, ours).")
    distillation: Literal["cross_entropy", "kl"] = Field(
        "cross_entropy", description="Eq. 2, or KL (minus the teacher's entropy)."
    )
    detach_teacher: bool = Field(True, description="No gradient into the teacher (as in related methods' code; ours).")
    parametrisation: Parametrisation = Field(
        "exit_softmax", description="Mapping of ω to loss weights (ours; measured in docs/decisions)."
    )
    omega_optimizer: Literal["adam", "sgd"] = Field(
        "adam", description="ω's optimiser: Adam for text, SGD for images (section 4)."
    )
    omega_forward: Literal["train", "eval"] = Field(
        "train", description="Dropout on (train) or off (eval) in forward passes for ω (ours; measured)."
    )
    omega_in_cycle: bool = Field(
        True, description="CLO-v2 also updates ω in steps 1..C-1 (algorithm 2); false: θ only (section 3.4)."
    )
    exit_dropout: float = Field(
        0.1, ge=0, lt=1, description="Dropout before each exit's linear layer, in training only (ours)."
    )
    first_epochs: int | None = Field(
        None,
        ge=1,
        description="Epochs of the fine-tuning stage, and of COST-EFF's assistant; None: max_epochs (ours).",
    )
    finetune_first: bool = Field(
        False, description="Fine-tune for the last exit before training all exits (Kubaty et al., 2025: mixed)."
    )
    two_stage: bool = Field(
        False, description="FastBERT's original second stage: frozen backbone, KL to the last exit, no labels."
    )
    keep: float = Field(
        0.5, gt=0, le=1, description="Share of layers, heads or (COST-EFF) widths that static compression keeps."
    )
    layerdrop: float = Field(0.2, gt=0, lt=1, description="Probability of skipping a layer in training (LayerDrop).")
    prune_rounds: int = Field(
        4, ge=1, description="Rounds of pruning to `keep`; they share max_epochs, at least one epoch each (ours)."
    )
    alpha: float = Field(
        0.5, ge=0, le=1, description="Weight α of distillation; labels weigh 1 − α (DBT; BERT-PKD searches .2, .5, .7)."
    )
    beta: float = Field(100.0, ge=0, description="BERT-PKD: weight of the distance of states.")
    annealing: float = Field(
        1.05, ge=1, description="DBT: factor on τ after each batch with a too confident teacher; 1: constant τ."
    )
    replacing_rate: float = Field(
        0.3, gt=0, le=1, description="BERT-of-Theseus: probability of a successor layer at the start of its stage."
    )
    precision: Precision = Field(
        "auto", description="auto: bf16 on CUDA and on CPUs with hardware support, else fp32 (ours)."
    )
    eval_batch_size: int = Field(64, ge=1, description="Samples per evaluation batch; changes only speed and memory.")
    seed: int = Field(0, ge=0, description="Seed of initialisation, dropout, batch order and the D1/D2 splits.")

    @property
    def own(self) -> dict[str, Any]:
        """The method's own options by name, with defaults for those that were not given."""
        return dict(self.model_extra or {})

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """Return all options: the fields, then methods' own options."""
        return (*cls.model_fields, *own_options())

    @model_validator(mode="wrap")
    @classmethod
    def _with_own_options(cls, values: Any, handler: ModelWrapValidatorHandler[TrainConfig]) -> TrainConfig:
        if not isinstance(values, Mapping):
            return handler(values)
        name = values.get("algorithm", cls.model_fields["algorithm"].default)
        method = METHODS.get(name) if isinstance(name, str) else None
        further = {key: value for key, value in values.items() if key not in cls.model_fields}
        if not further and (method is None or method.own_options is None):
            return handler(values)
        errors: list[InitErrorDetails] = []
        own: dict[str, Any] = {}
        try:
            own = ((method and method.own_options) or Frozen).model_validate(further).model_dump()
        except ValidationError as error:
            errors = again(error)
        try:
            config = handler({**{key: value for key, value in values.items() if key not in further}, **own})
        except ValidationError as error:
            errors = [*again(error), *errors]
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return config


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
    max_loss: float | None = Field(None, ge=0, le=100, description="Largest loss against the full model, in points.")
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
