"""The base of all configurations, and the training options that every configuration has.

A method adds options of its own (:attr:`leebert.methods.Method.own_options`); :class:`leebert.config.TrainConfig` joins both.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

TeacherSet = Literal["lae", "lle", "last", "none"]
Parametrisation = Literal["raw", "softplus", "exit_softmax", "group_softmax", "exit_teacher"]
Precision = Literal["auto", "fp32", "bf16"]


def _positive_rate(value: float) -> float:
    if not 0 < value < float("inf"):
        raise ValueError("should be a finite number above 0")
    return value


Rate = Annotated[float, AfterValidator(_positive_rate)]

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


class StandardOptions(Frozen):
    """The training options that are fields of every configuration. Each description states meaning and source."""

    algorithm: str = Field(
        "clo-v2", description="The method: an optimiser of ω (sections 3.3-3.4) or a baseline (table 1)."
    )
    lr_theta: Rate = Field(1e-5, description="λ1, the peak learning rate of θ (table 3; chosen for 5 of 7 tasks).")
    lr_omega: Rate = Field(
        1e-4, description="λ2, the learning rate of ω (table 3, MRPC). SLO, BLO, hyper, hyper-v2 and CLO use it."
    )
    cycle_length: int = Field(
        4, ge=1, description="C, θ steps per use of D2 (algorithm 2; 4 in table 3), for CLO-v2 and hyper-v2."
    )
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
    omega_optimizer: Literal["adam", "sgd", "adam_each"] = Field(
        "adam",
        description="ω's optimiser: Adam for text, SGD for images (section 4). Under adam, eq. 9 is one step on the sum of both "
        "gradients; adam_each: one Adam at λ1 and one at λ2, each with its gradient (ours).",
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
    label_noise: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of training samples that get the label of another class, by seed and fold, for experiments with noisy "
        "labels; validation samples keep theirs (ours).",
    )
    label_noise_exits: int | None = Field(
        None,
        ge=1,
        description="Only the cross-entropies of this number of exits, the first ones, get the labels of `label_noise`, each exit "
        "on another share of the samples; None: all exits get the same, and an outer objective, too (ours).",
    )
    precision: Precision = Field(
        "auto", description="auto: bf16 on CUDA and on CPUs with hardware support, else fp32 (ours)."
    )
    eval_batch_size: int = Field(64, ge=1, description="Samples per evaluation batch; changes only speed and memory.")
    seed: int = Field(0, ge=0, description="Seed of initialisation, dropout, batch order and the D1/D2 splits.")
