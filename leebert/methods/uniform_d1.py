"""LeeBERT-uniform on D1: the control for methods that learn ω on D2 (docs/decisions)."""

from __future__ import annotations

from typing import Any

from leebert.methods.common import DISTILLATION, JOINT, OPEN, SplitOptions, split_conflict
from leebert.methods.method import Method
from leebert.optim.fixed import Fixed


def omega(config: Any) -> Fixed:
    """Make the step of fixed weights on D1."""
    return Fixed(splits_data=True)


METHOD = Method(
    name="uniform-d1",
    title="LeeBERT-uniform on D1",
    label="Uniform-D1",
    group="early exit",
    source="the control for learned weights; beyond the paper",
    trains="all parameters, with every loss weight 1, on the same batches (D1) as BLO, hyper, hyper-v2 and CLO",
    exits="patience",
    cost="1",
    differs=(
        "not published: bit for bit BLO, hyper, hyper-v2 and CLO without learning ω, so that a paired comparison shows the effect "
        "of ω alone; `uniform` trains on batches of all samples; "
        f"{OPEN}"
    ),
    options=DISTILLATION | JOINT,
    own_options=SplitOptions,
    omega=omega,
    conflict=split_conflict,
    samples="D1",
    colour="#5a5fa0",
    chart_order=6,
)
