"""Configuration: frozen, typed, one sentence and one source per field.

Unknown keys are errors; :func:`parse` reports every error of a mapping at once, with the nearest valid key.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from leebert.errors import ConfigError

AlgorithmName = Literal["uniform", "rand", "slo", "blo", "hyper", "clo-v1", "clo-v2"]
TeacherSet = Literal["lae", "lle", "last", "none"]
Parametrisation = Literal["raw", "softplus", "exit_softmax", "group_softmax"]
Pooling = Literal["pooler", "cls", "mean"]
StrategyName = Literal["patience", "entropy", "normalised_entropy", "confidence", "never"]
Precision = Literal["auto", "fp32", "bf16"]


def _positive_rate(value: float) -> float:
    if not 0 < value < float("inf"):
        raise ValueError("a learning rate must be a finite number above 0")
    return value


Rate = Annotated[float, AfterValidator(_positive_rate)]


class Frozen(BaseModel):
    """Base of every configuration: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TrainConfig(Frozen):
    """How one model is trained. The defaults are the paper's where it gives them, else ours."""

    algorithm: AlgorithmName = Field("clo-v2", description="How ω is learned (sections 3.3-3.4, table 1).")
    lr_theta: Rate = Field(1e-5, description="λ1, the peak learning rate of θ (table 3; chosen for 5 of 7 tasks).")
    lr_omega: Rate = Field(
        1e-4, description="λ2, the learning rate of ω (table 3, MRPC). SLO, BLO, hyper and CLO use it."
    )
    cycle_length: int = Field(4, ge=1, description="C, θ steps per use of D2 (algorithm 2; 4 in table 3). CLO-v2 only.")
    batch_size: int = Field(32, ge=1, description="B, rows per θ step (table 3).")
    accumulate: int = Field(
        1,
        ge=1,
        description="Forward and backward take a batch in so many parts, for less memory; the same updates but for "
        "rounding, dropout masks, and BatchNorm, which sees each part alone (ours).",
    )
    max_epochs: int = Field(
        10, ge=1, description="Epochs of ⌊|D_train| / 2B⌋ θ updates each, and the schedule's horizon (ours)."
    )
    patience: int = Field(5, ge=1, description="Stop early after so many epochs without a better score (section 4.4).")
    warmup: float = Field(
        0.1, ge=0, lt=1, description="Share of the updates with a rising rate, then linear decay to 0 (ours)."
    )
    weight_decay: float = Field(
        0.0, ge=0, description="AdamW's weight decay on θ; 0 is the paper's Adam. ω never has any."
    )
    clip_norm: float = Field(1.0, gt=0, description="Clip θ's gradient at this norm; ω stays out of it (ours).")
    gradient_equilibrium: bool = Field(
        False, description="Layers learn from the mean of the exits above them, not the sum (Li et al. 2019)."
    )
    teachers: TeacherSet = Field(
        "lae", description="Who teaches whom, T(m) (section 3.1): all other exits, later ones, the last, none."
    )
    temperature: float = Field(1.0, gt=0, description="τ of the distillation (eqs. 2-3; not given in the paper, ours).")
    distillation: Literal["cross_entropy", "kl"] = Field(
        "cross_entropy", description="Eq. 2, or KL (minus the teacher's entropy)."
    )
    detach_teacher: bool = Field(True, description="No gradient into the teacher (the peers' code does this; ours).")
    parametrisation: Parametrisation = Field(
        "exit_softmax", description="How ω becomes weights (ours; measured in docs/decisions)."
    )
    omega_optimizer: Literal["adam", "sgd"] = Field(
        "adam", description="ω's optimiser: Adam for text, SGD for images (section 4)."
    )
    omega_forward: Literal["train", "eval"] = Field(
        "train", description="Dropout on or off in the forwards made for ω (ours; measured)."
    )
    omega_in_cycle: bool = Field(
        True, description="CLO-v2 moves ω in steps 1..C-1 too (algorithm 2); false: θ alone (section 3.4)."
    )
    exit_dropout: float = Field(
        0.1, ge=0, lt=1, description="Dropout before each exit's linear layer, in training only (ours)."
    )
    precision: Precision = Field(
        "auto", description="bf16 on CUDA and on CPUs that have it in hardware, else fp32 (ours)."
    )
    eval_batch_size: int = Field(
        64, ge=1, description="Rows per evaluation batch; changes nothing but speed and memory."
    )
    seed: int = Field(0, ge=0, description="Fixes initialisation, dropout, batch order and the D1/D2 splits.")


#: Hyperparameters that only some algorithms use; all others apply to every algorithm.
USED_BY: dict[str, frozenset[str]] = {
    "lr_omega": frozenset({"slo", "blo", "hyper", "clo-v1", "clo-v2"}),
    "parametrisation": frozenset({"slo", "blo", "hyper", "clo-v1", "clo-v2"}),
    "omega_optimizer": frozenset({"slo", "blo", "hyper", "clo-v1", "clo-v2"}),
    "omega_forward": frozenset({"blo", "hyper", "clo-v1", "clo-v2"}),
    # With it θ's step is no longer that of a loss's gradient, which hyper differentiates.
    "gradient_equilibrium": frozenset({"uniform", "rand", "slo", "blo", "clo-v1", "clo-v2"}),
    "cycle_length": frozenset({"clo-v2"}),
    "omega_in_cycle": frozenset({"clo-v2"}),
}


#: Options that change memory and speed, not what is trained: not searched, and a run may go on with others.
COST_ONLY: frozenset[str] = frozenset({"accumulate", "eval_batch_size"})


def applies(option: str, algorithm: str) -> bool:
    """Whether a training option changes anything under an algorithm (C only for CLO-v2, λ2 only where ω learns)."""
    return algorithm in USED_BY.get(option, {algorithm})


class ModelConfig(Frozen):
    """Which encoder, and what its exits see."""

    backbone: str = Field(description="A hub id (with optional @revision), a folder, or package:NAME/path.")
    pooling: Pooling = Field(
        "pooler", description="What the exits see: shared pretrained pooler, CLS state, or mean over tokens."
    )
    max_length: int = Field(128, ge=4, description="Tokens per row; longer rows are cut and counted (ours).")


class Subset(Frozen):
    """A stratified part of the training split, part of the data's fingerprint."""

    rows: int = Field(ge=2, description="How many rows to keep.")
    seed: int = Field(0, ge=0, description="Which rows.")


#: How far above its range's end an entropy threshold may lie: in float32 a row that knows nothing exceeds ln K.
THRESHOLD_SLACK = 1e-5


class ExitConfig(Frozen):
    """When a row leaves. The threshold's meaning and range are the strategy's."""

    strategy: StrategyName = Field("patience", description="The rule (sections 2.3, 4.4).")
    threshold: float | None = Field(None, description="None: round(M/3) for patience, the paper's 4 at M = 12.")

    @model_validator(mode="after")
    def _in_range(self) -> ExitConfig:
        t = self.threshold
        if t is None:
            if self.strategy not in ("patience", "never"):
                raise ValueError(f"strategy {self.strategy!r} needs a threshold")
        elif self.strategy == "patience" and (t != int(t) or t < 1):
            raise ValueError(f"patience must be a whole number of at least 1, not {t}")
        elif self.strategy in ("confidence", "normalised_entropy") and not 0 <= t <= 1 + THRESHOLD_SLACK:
            raise ValueError(f"a threshold for {self.strategy} lies between 0 and 1, not {t}")
        elif self.strategy == "confidence" and t == 0:
            raise ValueError("a threshold for confidence lies above 0, not 0")
        elif self.strategy == "entropy" and t < 0:
            raise ValueError(f"an entropy threshold is at least 0, not {t}")
        return self


Model = TypeVar("Model", bound=BaseModel)


def nearest(key: str, valid: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for a misspelt key, or an empty string."""
    close = difflib.get_close_matches(key, list(valid), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def problems(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line per error of a validation: key, value seen, what was expected."""
    lines = []
    for e in error.errors():
        where = ".".join(str(p) for p in e["loc"])
        said = f"{where}: " if where else ""
        if e["type"] == "extra_forbidden":
            fields = _fields_at(model, e["loc"][:-1])
            lines.append(f"{where}: unknown key{nearest(str(e['loc'][-1]), fields)}")
        elif e["type"] == "missing":
            lines.append(f"{where}: required, but missing")
        else:
            message = e["msg"].removeprefix("Value error, ")
            shown = (
                f", not {e['input']!r}"
                if not isinstance(e["input"], Mapping) and repr(e["input"]) not in message
                else ""
            )
            lines.append(f"{said}{message}{shown}")
    return lines


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    current: Any = model
    for part in path:
        fields = getattr(current, "model_fields", {})
        if part not in fields:
            return []
        current = fields[part].annotation
        if not hasattr(current, "model_fields"):
            options = [a for a in getattr(current, "__args__", ()) if hasattr(a, "model_fields")]
            current = options[0] if options else None
    return list(getattr(current, "model_fields", {}))


def parse(model: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """`values` as a `model`; a :class:`ConfigError` lists every error at once, each with its key, under `where`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = problems(error, model)
        raise ConfigError("\n".join([f"{where}: {len(lines)} error(s)", *(f"  {line}" for line in lines)])) from None
