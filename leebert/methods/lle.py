"""LLE (Zhu, ACL 2021): the later exits are the teachers of each exit; CLO-v2 learns the weights."""

from __future__ import annotations

from leebert.methods.clo_v2 import costs, omega
from leebert.methods.common import CYCLES, D2_OPEN, JOINT, LEEBERT, OWN_TEACHERS, OuterOptions, outer_conflict
from leebert.methods.method import Method

METHOD = Method(
    name="lle",
    title="LLE",
    label="LLE",
    group="learned weights",
    source=LEEBERT,
    trains="all parameters; each exit is taught by all later ones; CLO-v2 learns ω",
    exits="patience",
    cost="1 + 2/(3C)",
    differs=D2_OPEN,
    options=OWN_TEACHERS | CYCLES | JOINT,
    own_options=OuterOptions,
    omega=omega,
    conflict=outer_conflict,
    teachers="lle",
    costs=costs,
    samples="D1 and D2",
    omega_on_d1=True,
    colour="#7e7ee6",
)
