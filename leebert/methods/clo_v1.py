"""LeeBERT-CLO-v1 (Zhu, ACL 2021, algorithm 1): cross-level optimisation in every step."""

from __future__ import annotations

import functools
from typing import Any

from leebert.methods.clo_v2 import CLO
from leebert.methods.common import D2_OPEN, DISTILLATION, JOINT, LEEBERT, SAMPLED, constant
from leebert.methods.method import Method


def omega(config: Any) -> CLO:
    """Make the step of algorithm 1."""
    return CLO(cycle_length=1)


METHOD = Method(
    name="clo-v1",
    title="LeeBERT-CLO-v1",
    label="CLO-v1",
    group="learned weights",
    source=LEEBERT,
    trains="θ on D1, ω on D1 and D2 (eq. 9, algorithm 1)",
    exits="patience",
    cost="5/3",
    differs=D2_OPEN,
    options=DISTILLATION | SAMPLED | JOINT,
    omega=omega,
    costs=functools.partial(constant, cost=5 / 3),
    samples="D1 and D2",
    omega_on_d1=True,
    colour="#56b4e9",
    chart_order=1,
)
