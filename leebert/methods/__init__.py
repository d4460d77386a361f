"""The methods by name: each is a module of this package or a plugin of another package.

A method of another package is found by its entry point in the group ``leebert.methods``, or added by :func:`register`
(:mod:`leebert.plugins`).
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from leebert.methods.common import first
from leebert.methods.method import Group, Method, Samples, check
from leebert.plugins import Registry

__all__ = [
    "METHODS", "UNIT", "UNIT_ON_D1", "Group", "Method", "Samples", "applies", "has_stages", "mean_cost", "most_epochs", "own_options",
    "register", "specific", "stage_costs",
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
        "slo": "slo",
        "blo": "blo",
        "hyper": "hyper",
        "clo-v1": "clo_v1",
        "clo-v2": "clo_v2",
    },
    check,
)

#: The method whose update is the unit of all costs.
UNIT = "uniform"
#: The same on D1, the samples that train θ in methods that keep D2 for ω: their control.
UNIT_ON_D1 = "uniform-d1"


def register(method: Method) -> Method:
    """Add a method for this process and for the sweeps that it starts.

    Args:
        method: The method, whose name must be new.

    Returns:
        The method.

    Raises:
        ConfigError: Another method has this name, or the method is invalid.
    """
    return METHODS.register(method.name, method, module=sys._getframe(1).f_globals["__name__"])


@functools.cache
def specific() -> frozenset[str]:
    """Return the fields of TrainConfig that only some methods read; all others apply to every method."""
    return frozenset().union(*(METHODS[name].options for name in METHODS.built_in))


def own_options() -> dict[str, str]:
    """Return the options that methods declare beside TrainConfig's fields, each with the first method that has it."""
    return _owners(METHODS.changes)


@functools.lru_cache(maxsize=1)
def _owners(changes: int) -> dict[str, str]:
    owners: dict[str, str] = {}
    for name in METHODS:
        for option in METHODS[name].own_fields:
            owners.setdefault(option, name)
    return owners


def applies(option: str, algorithm: str) -> bool:
    """Return whether a training option changes anything under a method.

    Args:
        option: A field of TrainConfig, or an own option of a method.
        algorithm: The method's name.

    Returns:
        False for options that the method does not read, such as C for all but CLO-v2, λ2 without a learned ω, and own
        options of other methods.
    """
    return METHODS[algorithm].reads(option) or (option not in specific() and option not in own_options())


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
