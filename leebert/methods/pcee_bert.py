"""PCEE-BERT (Zhang et al., Findings of NAACL 2022): PABEE's training, exits by patient confidence."""

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
    trains="as PABEE: everything, cross-entropies weighted by their layer",
    exits="pcee",
    cost="1",
    differs=(
        "the exit that is certain for the p-th time in a row answers: the authors' averaging of the p exits is off "
        "in their runs"
    ),
    options=JOINT,
    stages=stages,
    costs=after_first,
    colour="#101088",
)
