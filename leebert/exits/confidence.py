"""Maximum probability (Shallow-Deep, RightTool): exit when the largest probability is high enough."""

from __future__ import annotations

import dataclasses

from leebert.exits.arrays import Array, namespace, softmax
from leebert.exits.criterion import Criterion


@dataclasses.dataclass(frozen=True)
class Confidence:
    """A sample exits when max_k p_k ≥ threshold."""

    threshold: float

    def measure(self, logits: Array, state: None) -> tuple[Array, None]:
        """Compute the largest probabilities, (B,)."""
        return namespace(logits).max(softmax(logits), axis=-1), None

    def step(self, logits: Array, state: None) -> tuple[Array, None]:
        """There is no state."""
        return self.measure(logits, state)[0] >= self.threshold, None


CRITERION = Criterion(
    name="confidence",
    title="the largest probability reaches the threshold",
    thresholds="above 0, at most 1",
    earliest="1",
    source="Shallow-Deep, Kaya et al., ICML 2019",
    make=lambda threshold, patience, num_classes: Confidence(threshold),
    span=lambda m, k: (1 / k, 1.0),
    top="1",
    colour="#2ca02c",
)
