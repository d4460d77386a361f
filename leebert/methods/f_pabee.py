"""F-PABEE (Gao et al., ICASSP 2023): PABEE's training, exits by the similarity of successive answers."""

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
    trains="as PABEE: everything, cross-entropies weighted by their layer",
    exits="f-pabee",
    cost="1",
    differs=(
        "similarity is the Jensen-Shannon divergence, which they find best, by its definition: their code leaves "
        "out two entropies"
    ),
    options=JOINT,
    stages=stages,
    costs=after_first,
    colour="#10c410",
)
