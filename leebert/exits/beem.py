"""Exits as experts (BEEM, ICLR 2025): leave when exits that agree are confident enough together."""

from __future__ import annotations

import dataclasses

import torch
from torch.nn import functional as F

from leebert.rules import BEEM_STEP

#: Each row's class at the last exit, its score there, and how many exits it has seen.
Score = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class BEEM:
    """A row leaves when its score reaches the threshold. Exit i (from 1) adds w_i · max_k p_k where it predicts the class of
    the exit before it; where it does not, the score is that product alone.

    w_i = 0.4 (i − 1), a weight by cost (BEEM-C) as in the published code for ALBERT: the first exit counts for nothing, so
    rows leave at the second at the earliest. After a disagreement that code starts again from 0, the paper and we from the
    present exit's own share. The paper's weights by accuracy (BEEM-A) and its thresholds per exit are left out.
    """

    threshold: float

    def measure(self, logits: torch.Tensor, state: Score | None) -> tuple[torch.Tensor, Score]:
        """(B,) scores so far."""
        predicted = logits.argmax(dim=-1)
        confidence = F.softmax(logits.float(), dim=-1).amax(dim=-1)
        if state is None:
            state = predicted, torch.zeros_like(confidence), torch.zeros_like(predicted)
        previous, score, seen = state
        own = BEEM_STEP * seen * confidence
        score = torch.where(predicted == previous, score + own, own)
        return score, (predicted, score, seen + 1)

    def step(self, logits: torch.Tensor, state: Score | None) -> tuple[torch.Tensor, Score]:
        score, state = self.measure(logits, state)
        return score >= self.threshold, state
