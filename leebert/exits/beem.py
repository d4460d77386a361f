"""Exits as experts (BEEM): exit when exits that agree are confident enough together."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from leebert.exits.criterion import Criterion

if TYPE_CHECKING:
    import torch

    #: Class and score of each sample at the previous exit, and the number of previous exits, (B,) each.
    Score = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

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

    def measure(self, logits: torch.Tensor, state: Score | None) -> tuple[torch.Tensor, Score]:
        """Compute scores, (B,)."""
        import torch

        predicted = logits.argmax(dim=-1)
        confidence = logits.float().softmax(dim=-1).amax(dim=-1)
        if state is None:
            state = predicted, torch.zeros_like(confidence), torch.zeros_like(predicted)
        previous, score, depth = state
        contribution = STEP * depth * confidence
        score = torch.where(predicted == previous, score + contribution, contribution)
        return score, (predicted, score, depth + 1)

    def step(self, logits: torch.Tensor, state: Score | None) -> tuple[torch.Tensor, Score]:
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
