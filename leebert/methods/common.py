"""What several methods share: sets of options, costs of stages, and remarks on where they differ from their papers."""

from __future__ import annotations

from typing import Any

#: Options of every objective in which exits teach each other (section 3.1, eqs. 2-4).
DISTILLATION = frozenset({"teachers", "temperature", "distillation", "detach_teacher"})
#: The same where the method says who teaches.
OWN_TEACHERS = DISTILLATION - {"teachers"}
#: Options of every method that learns ω (eqs. 7-9).
OMEGA = frozenset({"lr_omega", "parametrisation", "omega_optimizer"})
#: Of those that make forwards for ω.
SAMPLED = OMEGA | {"omega_forward"}
#: Of CLO-v2.
CYCLES = SAMPLED | {"cycle_length", "omega_in_cycle"}
#: Options of methods that may be preceded by fine-tuning.
FIRST = frozenset({"finetune_first", "first_epochs"})
#: Options of methods that train all their exits jointly.
JOINT = FIRST | {"gradient_equilibrium"}

LEEBERT = "Zhu, ACL 2021"
# What the papers leave open, and why it is decided as it is (docs/decisions/parametrisation.md, omega-forwards.md).
OPEN = "where the paper is silent: τ is 1, and no gradient goes into a teacher, as in the code of its peers"
OMEGA_OPEN = f"{OPEN}; weights are a softmax of ω over each exit's terms, since raw ones shrink and turn negative"
D2_OPEN = f"{OMEGA_OPEN}; forwards for ω have dropout as θ's, so that both descend on one loss"


def first(config: Any) -> tuple[int, float]:
    """Count a stage of plain fine-tuning before others: (epochs, arithmetic of an update)."""
    return config.first_epochs or config.max_epochs, 1.0


def cuts(config: Any) -> tuple[int, float]:
    """Count all rounds of cuts together: (epochs, mean share kept). They share `max_epochs`, at least one each."""
    rounds = config.prune_rounds
    return max(config.max_epochs, rounds), 1 - (1 - config.keep) * (rounds + 1) / (2 * rounds)


def frozen(config: Any) -> list[tuple[int, float]]:
    """Count fine-tuning, then the exits alone on the frozen network."""
    return [first(config), (config.max_epochs, 1 / 3)]


def student(config: Any) -> list[tuple[int, float]]:
    """Count fine-tuning, then a reduced student and its teacher's forwards."""
    return [first(config), (config.max_epochs, 1 / 3 + config.keep)]


def constant(config: Any, *, cost: float) -> list[tuple[int, float]]:
    """Count one stage whose updates cost the same whatever is configured."""
    return [(config.max_epochs, cost)]


def after_first(config: Any) -> list[tuple[int, float]]:
    """Count one stage of plain training, preceded by fine-tuning where a configuration says so."""
    joint = (config.max_epochs, 1.0)
    return [first(config), joint] if config.finetune_first else [joint]
