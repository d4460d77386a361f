"""BEEM (Bajpai and Hanawal, ICLR 2025): PABEE's training, exits by a weighted vote of the exits so far."""

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
    trains="as PABEE: everything, cross-entropies weighted by their layer",
    exits="beem",
    cost="1",
    differs=(
        "weights grow with the layer (BEEM-C) and one threshold is for all exits: weights by accuracy and "
        "thresholds per exit need rows of their own; after a disagreement the score starts from the exit's own "
        "share, as in the paper and not in the code"
    ),
    options=JOINT,
    stages=stages,
    costs=after_first,
    colour="#dc10ac",
)
