"""LLE (Zhu, ACL 2021): each exit is taught by those after it, and CLO-v2 learns the weights."""

from __future__ import annotations

from leebert.methods.clo_v2 import costs, omega
from leebert.methods.common import CYCLES, D2_OPEN, JOINT, LEEBERT, OWN_TEACHERS
from leebert.methods.method import Method

METHOD = Method(
    name="lle",
    title="LLE",
    label="LLE",
    group="learned weights",
    source=LEEBERT,
    trains="everything, later exits teach; ω by CLO-v2",
    exits="patience",
    cost="1 + 2 / 3C",
    differs=D2_OPEN,
    options=OWN_TEACHERS | CYCLES | JOINT,
    omega=omega,
    teachers="lle",
    costs=costs,
    samples="D1 and D2",
    omega_on_d1=True,
    colour="#7e7ee6",
)
