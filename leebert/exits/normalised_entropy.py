"""Normalised entropy (FastBERT): the entropy divided by ln K, so that a threshold means the same for any number of classes."""

from __future__ import annotations

from leebert.exits.criterion import Criterion
from leebert.exits.entropy import Entropy

CRITERION = Criterion(
    name="normalised_entropy",
    title="entropy / ln K is below the threshold",
    thresholds="0 to 1",
    earliest="1",
    source="FastBERT, Liu et al., ACL 2020",
    make=lambda threshold, patience, num_classes: Entropy.normalised(threshold, num_classes),
    span=lambda m, k: (0.0, 1.0),
    top="1",
    rising=True,
    unit_of="entropy",
    label="normalised entropy",
    colour="#ff9896",
)
