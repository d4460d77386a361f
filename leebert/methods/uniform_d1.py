"""LeeBERT-uniform on D1: what BLO, hyper and CLO are without learning ω, their control (docs/decisions)."""

from __future__ import annotations

from typing import Any

from leebert.methods.common import DISTILLATION, JOINT, OPEN
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
    trains="everything, all weights 1, on the same batches as BLO, hyper and CLO (D1)",
    exits="patience",
    cost="1",
    differs=(
        "no paper's: what BLO, hyper and CLO are without learning ω, bit for bit, so that paired with it they "
        "differ by ω alone; uniform trains on batches from all rows; "
        f"{OPEN}"
    ),
    options=DISTILLATION | JOINT,
    omega=omega,
    samples="D1",
    colour="#4a4f80",
    chart_order=6,
)
