"""PCEE-BERT (Zhang et al., Findings of NAACL 2022): PABEE's training; exit criterion patient confidence."""

from __future__ import annotations

from leebert.methods.common import JOINT, after_first
from leebert.methods.method import Method
from leebert.methods.pabee import stages

METHOD = Method(
    name="pcee-bert",
    title="PCEE-BERT",
    label="PCEE-BERT",
    group="early exit",
    source="Zhang et al., Findings of NAACL 2022",
    trains="all parameters, on cross-entropies weighted by depth as in PABEE",
    exits="pcee",
    cost="1",
    differs=(
        "the p-th consecutive confident exit makes the prediction; the paper's average over the p exits is "
        "disabled in the authors' runs"
    ),
    options=JOINT,
    stages=stages,
    costs=after_first,
    colour="#1e55eb",
)
