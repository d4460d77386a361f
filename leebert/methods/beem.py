"""BEEM (Bajpai and Hanawal, ICLR 2025): PABEE's training; the exit criterion is a weighted vote of all exits so far."""

from __future__ import annotations

from leebert.methods.common import JOINT, after_first
from leebert.methods.method import Method
from leebert.methods.pabee import stages

METHOD = Method(
    name="beem",
    title="BEEM",
    label="BEEM",
    group="early exit",
    source="Bajpai and Hanawal, ICLR 2025",
    trains="all parameters, on cross-entropies weighted by depth as in PABEE",
    exits="beem",
    cost="1",
    differs=(
        "vote weights grow with the layer (BEEM-C), and all exits share one threshold; weights by accuracy and "
        "one threshold per exit are not implemented; after a disagreement the score starts from the exit's own "
        "share, as in the paper but not in the authors' code"
    ),
    options=JOINT,
    stages=stages,
    costs=after_first,
    colour="#dc10ac",
)
