"""Objectives of students: imitate the predictions and states of a teacher from an earlier stage."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch.nn import functional as F

from leebert.losses import cross_entropy_per_exit, distillation_pairs
from leebert.objective import ObjectiveState
from leebert.record import Keep, Record

#: The imitated states: normalised CLS states layer by layer (BERT-PKD), the direction of the last states (DistilBERT), or every
#: position of every layer (COST-EFF).
Imitated = Literal["patient", "last", "all"]
_KEEP: dict[Imitated, Keep] = {"patient": "hidden", "last": "states", "all": "states"}


@dataclasses.dataclass(frozen=True)
class StudentObjective:
    """The loss a Σ_m CE_m + b Σ_m τ² KL(teacher ‖ p_m) + c · (distance of states) with fixed a, b and c.

    Attributes:
        num_exits: M of the student.
        hard: a.
        soft: b.
        states: c.
        imitated: The states that the student imitates.
        temperature: τ.
        same_exit: Whether the teacher of exit m is the teacher's exit m; else its last exit.
        predictions_from: Share of the stage after which predictions count; before it, only states are imitated.
        taught: Whether the terms need the record of the stage's teacher.
    """

    num_exits: int
    hard: float
    soft: float
    states: float
    imitated: Imitated
    temperature: float = 1.0
    same_exit: bool = False
    predictions_from: float = 0.0
    taught: bool = True

    @property
    def keep(self) -> Keep:
        return _KEEP[self.imitated]

    @property
    def num_terms(self) -> int:
        return 2 * self.num_exits + 1

    def initial(self, generator: torch.Generator) -> ObjectiveState:
        return {"answers": torch.tensor(float(self.predictions_from == 0))}

    def terms(self, record: Record, state: ObjectiveState, teacher: Record | None = None) -> torch.Tensor:
        """Compute M cross-entropies, M terms of eq. 2 with the teacher, and the distance of states.

        Args:
            record: A record of B samples with labels.
            state: The objective's state.
            teacher: The teacher's record of the same samples.

        Returns:
            (2M + 1,), each a mean over samples.

        Raises:
            ValueError: The record has no labels, or there is no teacher.
        """
        labels = record.labels_by_exit
        if labels is None or teacher is None:
            raise ValueError("a student needs labels and a teacher")
        ce = cross_entropy_per_exit(record.logits, labels)
        target = teacher.logits if self.same_exit else teacher.logits[-1:]
        pairs = distillation_pairs(record.logits, self.temperature, kl=True, teacher_logits=target)  # (M, T)
        soft = pairs.diagonal() if self.same_exit else pairs[:, 0]
        return torch.cat([ce, soft, distance(record, teacher, self.imitated).to(ce).unsqueeze(0)])

    def weights(self, state: ObjectiveState) -> torch.Tensor:
        device = state["answers"].device
        of_predictions = torch.tensor([self.hard, self.soft], device=device).repeat_interleave(self.num_exits)
        return torch.cat([of_predictions * state["answers"], torch.tensor([self.states], device=device)])

    def after_step(self, record: Record, state: ObjectiveState, progress: float) -> ObjectiveState:
        return {"answers": torch.full_like(state["answers"], float(progress >= self.predictions_from))}


def distance(student: Record, teacher: Record, imitated: Imitated) -> torch.Tensor:
    """Compute the distance between the states of student and teacher.

    Args:
        student: The student's record.
        teacher: The teacher's record of the same samples.
        imitated: `patient`: mean squared distance of normalised states after each layer but the last, from the teacher's at
            the same share of its depth (Sun et al., 2019, eq. 7, averaged as in their code, for which their values of β
            hold). `last`: 1 − cosine of the last states, mean over unmasked positions (Sanh et al., 2019). `all`: mean squared
            difference of states over unmasked positions, summed over embeddings and layers (Shen et al., 2022, section
            3.2).

    Returns:
        A scalar.
    """
    if imitated == "patient":
        assert student.hidden is not None
        assert teacher.hidden is not None
        n, of = len(student.hidden), len(teacher.hidden)
        if n == 1:  # no layer but the last
            return student.logits.new_zeros(())
        at = [(layer + 1) * of // n - 1 for layer in range(n - 1)]
        a = F.normalize(student.hidden[:-1].float(), dim=-1)
        b = F.normalize(teacher.hidden[at].float(), dim=-1)
        return (a - b).square().mean()
    assert student.states is not None
    assert teacher.states is not None
    a, b = student.states.float(), teacher.states.float()
    if imitated == "last":
        return _mean(1 - F.cosine_similarity(a[-1], b[-1], dim=-1), student.mask)
    return _mean((a - b).square().mean(dim=-1).sum(dim=0), student.mask)


def _mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Average values (B, L) over unmasked positions, then over samples."""
    if mask is None:
        return values.mean()
    weight = mask.to(values)
    return ((values * weight).sum(dim=1) / weight.sum(dim=1)).mean()
