"""LeeBERT-rand (Zhu, ACL 2021, section 3.3): the weights of the loss terms are drawn once."""

from __future__ import annotations

from leebert.methods.common import DISTILLATION, JOINT, LEEBERT, OPEN
from leebert.methods.method import Method

METHOD = Method(
    name="rand",
    title="LeeBERT-rand",
    label="Random",
    group="early exit",
    source=LEEBERT,
    trains="everything, weights drawn once",
    exits="patience",
    cost="1",
    differs=OPEN,
    options=DISTILLATION | JOINT,
    draws_weights=True,
    colour="#a6559d",
    chart_order=7,
)
