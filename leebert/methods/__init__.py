"""The methods by name: each is a module of this package or a plugin of another package.

A method of another package is found by its entry point in the group ``leebert.methods``, or added by ``METHODS.register``
(:mod:`leebert.plugins`).
"""

from __future__ import annotations

import functools
from typing import Any

from leebert.methods.common import first
from leebert.methods.method import STANDARD, Group, Method, Samples, check
from leebert.plugins import Registry

__all__ = [
    "METHODS", "UNIT", "UNIT_ON_D1", "Group", "Method", "Samples", "applies", "has_stages", "mean_cost", "most_epochs", "owner_of",
    "specific", "stage_costs",
]  # fmt: skip

#: The methods by their names in configurations (key `algorithm`), in the order of tables. A module holds its method as
#: `METHOD`.
METHODS: Registry[Method] = Registry(
    "method",
    "leebert.methods",
    "leebert.methods",
    "METHOD",
    {
        "finetune": "finetune",
        "truncated": "truncated",
        "layerdrop": "layerdrop",
        "headprune": "headprune",
        "distilled": "distilled",
        "pkd": "pkd",
        "theseus": "theseus",
        "cost-eff": "cost_eff",
        "deebert": "deebert",
        "shallow-deep": "shallow_deep",
        "dbt": "dbt",
        "pabee": "pabee",
        "pcee-bert": "pcee_bert",
        "f-pabee": "f_pabee",
        "beem": "beem",
        "fastbert": "fastbert",
        "fastbert-clo-v2": "fastbert_clo_v2",
        "lle": "lle",
        "rand": "rand",
        "uniform": "uniform",
        "uniform-d1": "uniform_d1",
        "uncertainty": "uncertainty",
        "slo": "slo",
        "blo": "blo",
        "hyper": "hyper",
        "hyper-v2": "hyper_v2",
        "clo-v1": "clo_v1",
        "clo-v2": "clo_v2",
    },
    Method,
    check,
)

#: The method whose update is the unit of all costs.
UNIT = "uniform"
#: The same on D1, the samples that train θ in methods that keep D2 for ω: their control.
UNIT_ON_D1 = "uniform-d1"


@functools.cache
def specific() -> frozenset[str]:
    """Return the fields of TrainConfig that only some methods read; all others apply to every method."""
    return frozenset().union(*(method.options for method in METHODS.own()))


def owner_of(option: str) -> str | None:
    """Return the first method that declares an option beside TrainConfig's fields; None where none does.

    It loads the methods of all packages, except for those that can't be loaded: it serves messages.
    """
    return next((method.name for method in METHODS.values() if option in method.own_fields), None)


def applies(option: str, algorithm: str) -> bool:
    """Return whether a training option changes anything under a method.

    Args:
        option: A field of TrainConfig, or an own option of a method.
        algorithm: The method's name.

    Returns:
        False for options that the method does not read, such as C for all but CLO-v2, λ2 without a learned ω, and own
        options of other methods.
    """
    return METHODS[algorithm].reads(option) or (option in STANDARD and option not in specific())


def has_stages(config: Any) -> bool:
    """Return whether a training configuration's method trains in several stages, so that its epochs don't compare."""
    return len(stage_costs(config)) > 1


def most_epochs(config: Any) -> int:
    """Count the epochs of all stages of a training configuration, without early stops."""
    return sum(epochs for epochs, _ in stage_costs(config))


def mean_cost(config: Any) -> float:
    """Return the mean cost of an update over all stages without early stops, relative to plain fine-tuning."""
    return sum(epochs * cost for epochs, cost in stage_costs(config)) / most_epochs(config)


def stage_costs(config: Any) -> list[tuple[int, float]]:
    """Return for each stage of a configuration the maximum epochs and the cost of an update relative to fine-tuning."""
    method = METHODS[config.algorithm]
    costs = method.costs(config)
    preceded = method.stages is None and "finetune_first" in method.options and config.finetune_first
    return [first(config), *costs] if preceded else costs
