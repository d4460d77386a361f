"""Exits as experts (BEEM): exit when exits that agree are confident enough together."""

from __future__ import annotations

import dataclasses

from leebert.exits.arrays import Array, float32, namespace, softmax
from leebert.exits.criterion import Criterion

#: Class and score of each sample at the previous exit, and the number of previous exits, (B,) each.
Score = tuple[Array, Array, Array]

#: Increase of an exit's weight per exit: w_i = 0.4 (i − 1), i from 1.
STEP = 0.4


@dataclasses.dataclass(frozen=True)
class BEEM:
    """A sample exits when its score reaches the threshold. Exit i (from 1) adds w_i · max_k p_k where it predicts the class of
    the exit before it; where it does not, the score is that product alone.

    w_i = 0.4 (i − 1), a weight by cost (BEEM-C) as in the published code for ALBERT: the first exit counts for nothing, so
    samples exit at the second at the earliest. After a disagreement that code restarts from 0; the paper and this
    implementation restart from the present exit's contribution. The paper's weights by accuracy (BEEM-A) and its thresholds per exit are not implemented.
    """

    threshold: float

    def measure(self, logits: Array, state: Score | None) -> tuple[Array, Score]:
        """Compute scores, (B,)."""
        xp = namespace(logits)
        predicted = xp.argmax(logits, axis=-1)
        confidence = xp.max(softmax(logits), axis=-1)
        if state is None:
            state = predicted, xp.zeros_like(confidence), xp.zeros_like(predicted)
        previous, score, depth = state
        contribution = STEP * float32(depth) * confidence
        score = xp.where(predicted == previous, score + contribution, contribution)
        return score, (predicted, score, depth + 1)

    def step(self, logits: Array, state: Score | None) -> tuple[Array, Score]:
        """The state is that of `measure`."""
        score, state = self.measure(logits, state)
        return score >= self.threshold, state


CRITERION = Criterion(
    name="beem",
    title=(
        "Σ 0.4 (i − 1) · (largest probability at exit i) reaches the threshold; the sum covers this exit and the exits "
        "directly before it that predict the same class"
    ),
    thresholds="above 0, at most 0.2 M (M − 1)",
    earliest="2",
    source="BEEM, Bajpai and Hanawal, ICLR 2025",
    make=lambda threshold, patience, num_classes: BEEM(threshold),
    # From the score of the least confident second exit to that of M agreeing exits with probability 1.
    span=lambda m, k: (STEP / k, STEP * m * (m - 1) / 2),
    top="{high:g} (with {exits} exits)",
    first=lambda p: 2,
    several=True,
    squares=True,
    label="BEEM",
    colour="#e377c2",
)
