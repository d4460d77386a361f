"""Entropy (DeeBERT): exit when the distribution over classes is certain enough."""

from __future__ import annotations

import dataclasses
import math

from leebert.exits.arrays import Array, log_softmax, namespace
from leebert.exits.criterion import Criterion


@dataclasses.dataclass(frozen=True)
class Entropy:
    """A sample exits when −Σ_k p_k ln p_k < threshold · unit (natural logarithm, so at most ln K).

    Attributes:
        threshold: The threshold.
        unit: Its unit in nats: 1, or ln K for the normalised entropy.
    """

    threshold: float
    unit: float = 1.0

    @classmethod
    def normalised(cls, threshold: float, num_classes: int) -> Entropy:
        """FastBERT's uncertainty in [0, 1]: entropy / ln K < threshold."""
        return cls(threshold, math.log(num_classes))

    def measure(self, logits: Array, state: None) -> tuple[Array, None]:
        """(B,) entropies in units of `unit`."""
        return self._nats(logits) / self.unit, None

    def step(self, logits: Array, state: None) -> tuple[Array, None]:
        """There is no state."""
        return self._nats(logits) < self.threshold * self.unit, None

    @staticmethod
    def _nats(logits: Array) -> Array:
        xp, log_p = namespace(logits), log_softmax(logits)
        return -xp.sum(xp.exp(log_p) * log_p, axis=-1)


CRITERION = Criterion(
    name="entropy",
    title="the entropy, in nats, is below the threshold",
    thresholds="0 to ln K",
    earliest="1",
    source="DeeBERT, Xin et al., ACL 2020",
    make=lambda threshold, patience, num_classes: Entropy(threshold),
    span=lambda m, k: (0.0, math.log(k)),
    top="ln {classes} = {high:.4f}",
    rising=True,
    colour="#d62728",
)
