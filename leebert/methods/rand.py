"""LeeBERT-rand (Zhu, ACL 2021, section 3.3): the loss weights are drawn once at random."""

from __future__ import annotations

from leebert.methods.common import DISTILLATION, JOINT, LEEBERT, OPEN
from leebert.methods.method import Method

METHOD = Method(
    name="rand",
    title="LeeBERT-rand",
    label="Random",
    group="early exit",
    source=LEEBERT,
    trains="all parameters, with loss weights that are drawn at random once and stay fixed",
    exits="patience",
    cost="1",
    differs=OPEN,
    options=DISTILLATION | JOINT,
    draws_weights=True,
    colour="#a6559d",
    chart_order=7,
)
