"""Flexible patience (F-PABEE): exit when the distribution has hardly changed p times in a row."""

from __future__ import annotations

import dataclasses
import math

from leebert.exits.arrays import Array, log_softmax, namespace
from leebert.exits.criterion import Criterion


@dataclasses.dataclass(frozen=True)
class FPABEE:
    """A counter starts at 0; from the second exit on it grows by 1 when the Jensen-Shannon divergence to the previous exit's
    distribution is below the threshold, else falls to 0; the sample exits when it reaches `patience`, so at exit p + 1 at the
    earliest.

    In the paper this divergence is the best of those compared. This implementation follows its definition, in nats, at most
    ln 2; the published code omits the two entropies, so its thresholds differ.

    Attributes:
        threshold: The threshold, in nats.
        patience: p.
    """

    threshold: float
    patience: int

    def measure(self, logits: Array, state: Array | None) -> tuple[Array, Array]:
        """(B,) divergences from the previous exit, whose (B, K) log-probabilities are the state; infinite at the first exit."""
        xp, log_p = namespace(logits), log_softmax(logits)
        if state is None:
            return xp.full_like(log_p[:, 0], math.inf), log_p
        log_middle = xp.logaddexp(log_p, state) - math.log(2)
        both = xp.exp(log_p) * (log_p - log_middle) + xp.exp(state) * (state - log_middle)
        # Rounding may put it a little outside: below 0, samples would exit at a threshold of 0.
        return xp.clip(xp.sum(both, axis=-1) / 2, 0.0, math.log(2)), log_p

    def step(self, logits: Array, state: tuple[Array, Array] | None) -> tuple[Array, tuple[Array, Array]]:
        """The state is the (B, K) log-probabilities of the exit before and the counter, (B,)."""
        xp = namespace(logits)
        previous, counter = state if state is not None else (None, xp.zeros_like(logits[:, 0], dtype=xp.float32))
        divergence, log_p = self.measure(logits, previous)
        counter = xp.where(divergence < self.threshold, counter + 1, 0)
        return counter >= self.patience, (log_p, counter)


CRITERION = Criterion(
    name="f-pabee",
    title="the Jensen-Shannon divergence from the previous exit's distribution has been below the threshold at `patience` exits "
    "in a row",
    thresholds="0 to ln 2",
    earliest="`patience` + 1",
    source="F-PABEE, Gao et al., ICASSP 2023",
    make=lambda threshold, patience, num_classes: FPABEE(threshold, patience),
    span=lambda m, k: (0.0, math.log(2)),
    top="ln 2 = {high:.4f}",
    rising=True,
    # 2 at M = 12 (ours); lower with fewer exits, since no sample exits before exit patience + 1.
    patience=lambda m: max(1, round(m / 6)),
    first=lambda p: p + 1,
    several=True,
    squares=True,
    label="F-PABEE",
    colour="#8c564b",
)
