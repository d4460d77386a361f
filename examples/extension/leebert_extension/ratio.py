"""Ratio: a sample exits when its second class is improbable relative to the first."""

from __future__ import annotations

import dataclasses
from typing import Any

from leebert.exits.arrays import float32, namespace
from leebert.exits.criterion import Criterion


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A sample exits when p_(2) / p_(1) < threshold, for its two most probable classes."""

    threshold: float

    def measure(self, logits: Any, state: None) -> tuple[Any, None]:
        """Return the (B,) ratios of (B, K) logits."""
        xp = namespace(logits)  # of torch tensors in training, of NumPy arrays in exported models
        ordered = xp.sort(float32(logits), axis=-1)
        return xp.exp(ordered[:, -2] - ordered[:, -1]), None

    def step(self, logits: Any, state: None) -> tuple[Any, None]:
        """Return (B,) whether each sample exits; the criterion has no state."""
        return self.measure(logits, state)[0] < self.threshold, None


CRITERION = Criterion(
    name="ratio",
    title="the second largest probability is below the threshold times the largest",
    source="this example",
    thresholds="0 to 1",
    make=lambda threshold, patience, num_classes: Ratio(threshold),
    span=lambda exits, classes: (0.0, 1.0),
    top="1",
    rising=True,
    default=lambda exits: 0.5,
    colour="#aa3377",
)
