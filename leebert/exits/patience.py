"""Patience (PABEE, section 2.3): exit when p exits in a row agree with the one before them."""

from __future__ import annotations

import dataclasses

from leebert.exits.arrays import Array, namespace
from leebert.exits.criterion import Criterion


@dataclasses.dataclass(frozen=True)
class Patience:
    """A counter starts at 0; from the second exit on it grows by 1 when the predicted class equals the previous
    exit's, else falls to 0; the sample exits when it reaches `patience`, so at exit p + 1 at the earliest.
    """

    patience: int

    def step(self, logits: Array, state: tuple[Array, Array] | None) -> tuple[Array, tuple[Array, Array]]:
        """The state is the class at the exit before and the counter, (B,) each."""
        xp = namespace(logits)
        predicted = xp.argmax(logits, axis=-1)  # (B,)
        if state is None:
            counter = xp.zeros_like(predicted)
        else:
            previous, counter = state
            counter = xp.where(predicted == previous, counter + 1, 0)
        return counter >= self.patience, (predicted, counter)


def default_patience(num_exits: int) -> int:
    """round(M/3), the paper's 4 at M = 12."""
    return max(1, round(num_exits / 3))


CRITERION = Criterion(
    name="patience",
    title="at `threshold` exits in a row, the predicted class equals that of the previous exit",
    thresholds="1 to M − 1; default round(M / 3)",
    earliest="threshold + 1",
    source="PABEE, Zhou et al., NeurIPS 2020; LeeBERT, section 2.3",
    make=lambda threshold, patience, num_classes: Patience(int(threshold)),
    span=lambda m, k: (1, m - 1),
    whole=True,
    default=default_patience,
    several=True,
    colour="#1f77b4",
)
