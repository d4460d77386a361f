"""LeeBERT-uniform (Zhu, ACL 2021, section 3.3): all loss weights are 1."""

from __future__ import annotations

from leebert.methods.common import DISTILLATION, JOINT, LEEBERT, OPEN
from leebert.methods.method import Method

METHOD = Method(
    name="uniform",
    title="LeeBERT-uniform",
    label="Uniform",
    group="early exit",
    source=LEEBERT,
    trains="all parameters, with every loss weight 1",
    exits="patience",
    cost="1",
    differs=OPEN,
    options=DISTILLATION | JOINT,
    colour="#8c8c8c",
    chart_order=5,
)
