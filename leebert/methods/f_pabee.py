"""F-PABEE (Gao et al., ICASSP 2023): PABEE's training; the exit criterion is prediction similarity."""

from __future__ import annotations

from leebert.methods.common import JOINT, after_first
from leebert.methods.method import Method
from leebert.methods.pabee import stages

METHOD = Method(
    name="f-pabee",
    title="F-PABEE",
    label="F-PABEE",
    group="early exit",
    source="Gao et al., ICASSP 2023",
    trains="all parameters, on cross-entropies weighted by depth as in PABEE",
    exits="f-pabee",
    cost="1",
    differs=(
        "similarity is the Jensen-Shannon divergence, the paper's best choice, by its definition; the authors' "
        "code omits two entropies"
    ),
    options=JOINT,
    stages=stages,
    costs=after_first,
    colour="#10c410",
)
