"""Patience and certainty together (PCEE-BERT): exit when p exits in a row are certain enough."""

from __future__ import annotations

import dataclasses

from leebert.exits.arrays import Array, namespace
from leebert.exits.criterion import Criterion
from leebert.exits.entropy import Entropy


@dataclasses.dataclass(frozen=True)
class PCEE:
    """A counter starts at 0 and grows by 1 at each exit whose entropy / ln K is below the threshold, else falls to 0; the
    sample exits when it reaches `patience`, so at exit p at the earliest. At patience 1 this is the normalised entropy.

    The prediction is that exit's; the authors' averaging over the p exits is off in their experiments and not implemented.

    Attributes:
        entropy: The criterion at a single exit.
        patience: p.
    """

    entropy: Entropy
    patience: int

    def measure(self, logits: Array, state: None) -> tuple[Array, None]:
        """(B,) normalised entropies."""
        return self.entropy.measure(logits, state)

    def step(self, logits: Array, state: Array | None) -> tuple[Array, Array]:
        """The state is the counter, (B,)."""
        xp = namespace(logits)
        certain, _ = self.entropy.step(logits, None)
        counter = xp.zeros_like(certain, dtype=xp.int64) if state is None else state
        counter = xp.where(certain, counter + 1, 0)
        return counter >= self.patience, counter


CRITERION = Criterion(
    name="pcee",
    title="entropy / ln K has been below the threshold at `patience` exits in a row",
    thresholds="0 to 1",
    earliest="`patience`",
    source="PCEE-BERT, Zhang et al., Findings of NAACL 2022",
    make=lambda threshold, patience, num_classes: PCEE(Entropy.normalised(threshold, num_classes), patience),
    span=lambda m, k: (0.0, 1.0),
    top="1",
    rising=True,
    patience=lambda m: min(2, max(1, m - 1)),  # the authors' scripts count to 2
    first=lambda p: p,
    several=True,
    label="PCEE",
    colour="#9467bd",
)
