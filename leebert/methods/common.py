"""Sets of options, costs of stages, and differences from the papers that several methods share."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from leebert.errors import ConfigError
from leebert.optim.outer import OBJECTIVES, Outer, OuterObjective
from leebert.standard_options import Frozen

#: Options of every objective in which exits distil into each other (section 3.1, eqs. 2-4).
DISTILLATION = frozenset({"teachers", "temperature", "distillation", "detach_teacher"})
#: The same for methods that fix the teachers.
OWN_TEACHERS = DISTILLATION - {"teachers"}
#: Options of every method that learns ω (eqs. 7-9).
OMEGA = frozenset({"lr_omega", "parametrisation", "omega_optimizer"})
#: Options of methods with extra forward passes for ω.
SAMPLED = OMEGA | {"omega_forward"}
#: Options of CLO-v2.
CYCLES = SAMPLED | {"cycle_length", "omega_in_cycle"}
#: Options of methods that can start from a fine-tuned model.
FIRST = frozenset({"finetune_first", "first_epochs"})
#: Options of methods that train all their exits jointly.
JOINT = FIRST | {"gradient_equilibrium"}


#: Own options of methods that only decide how ω learns, beside those of CYCLES.
OUTER = frozenset({"outer", "one_sided", "averaging", "reuse_forward"})


class SplitOptions(Frozen):
    """The split of the training samples into D1 and D2."""

    fixed_d2: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Share of the training samples that are D2 in every epoch, so that θ never trains on them; 0: another half in "
        "each epoch, as published, so that θ has seen most of D2 after a few epochs (ours).",
    )


class OuterOptions(SplitOptions):
    """The outer objective of methods whose publication has L_B2 with its weights."""

    outer: Outer = Field(
        "weighted",
        description="What ω improves on D2: weighted, L with its weights (eqs. 8, 9), or, by the hypergradient and without "
        "weights, ce, the mean cross-entropy over exits, deepest, that of the last exit, or score, the mean over exits of "
        "1 − p(label) (ours).",
    )


LEEBERT = "Zhu, ACL 2021"
# Choices that the paper leaves open; reasons in docs/decisions/parametrisation.md and omega-forwards.md.
OPEN = "not specified in the paper: τ is 1, and no gradient flows into a teacher, as in related methods' code"
OMEGA_OPEN = f"{OPEN}; weights are a softmax of ω over each exit's terms, since raw weights shrink and turn negative"
D2_OPEN = f"{OMEGA_OPEN}; forward passes for ω use dropout, so that θ and ω descend on the same loss"


def outer_of(config: Any, *, balanced: bool = False) -> OuterObjective | None:
    """Return the outer objective without weights; None for L(θ, ω), also where a method has no such option.

    Args:
        config: The training configuration.
        balanced: Whether the method reads `gradient_equilibrium`.

    Raises:
        ConfigError: θ's step is not along the gradient of a loss, so there is no hypergradient.
    """
    outer = OBJECTIVES.get(config.own.get("outer", "weighted"))
    if outer and balanced and config.gradient_equilibrium:
        raise ConfigError(
            f"gradient_equilibrium: {config.algorithm} can't take a hypergradient through averaged gradients, as with outer: "
            f"{config.own['outer']}; remove one of them"
        )
    return outer


def first(config: Any) -> tuple[int, float]:
    """Count a first stage of plain fine-tuning: (epochs, cost of an update)."""
    return config.first_epochs or config.max_epochs, 1.0


def cuts(config: Any) -> tuple[int, float]:
    """Count all rounds of pruning: (epochs, mean share kept). They share `max_epochs`, at least one epoch each."""
    rounds = config.prune_rounds
    return max(config.max_epochs, rounds), 1 - (1 - config.keep) * (rounds + 1) / (2 * rounds)


def frozen(config: Any) -> list[tuple[int, float]]:
    """Count fine-tuning, then the exits on the frozen network."""
    return [first(config), (config.max_epochs, 1 / 3)]


def student(config: Any) -> list[tuple[int, float]]:
    """Count fine-tuning, then a reduced student with the teacher's forward passes."""
    return [first(config), (config.max_epochs, 1 / 3 + config.keep)]


def constant(config: Any, *, cost: float) -> list[tuple[int, float]]:
    """Count one stage of constant cost per update."""
    return [(config.max_epochs, cost)]


def after_first(config: Any) -> list[tuple[int, float]]:
    """Count one stage of plain training, after fine-tuning if `finetune_first` is set."""
    joint = (config.max_epochs, 1.0)
    return [first(config), joint] if config.finetune_first else [joint]
