"""What a student learns from a teacher of an earlier stage: its answers, and its states."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch.nn import functional as F

from leebert.losses import cross_entropy_per_exit, distillation_pairs
from leebert.objective import ObjectiveState
from leebert.record import Keep, Record

#: Which states a student imitates: BERT-PKD's, normalised, layer by layer; the last one's direction (DistilBERT); or every
#: position of every layer (COST-EFF).
Imitated = Literal["patient", "last", "all"]
_KEEP: dict[Imitated, Keep] = {"patient": "hidden", "last": "states", "all": "states"}


@dataclasses.dataclass(frozen=True)
class StudentObjective:
    """a Σ_m CE_m + b Σ_m τ² KL(teacher ‖ p_m) + c · (distance of states), fixed a, b and c.

    num_exits: M of the student. same_exit: exit m is taught by the teacher's exit m, else all by its last one.
    answers_from: the share of the stage after which answers count; before it only states are imitated.
    """

    num_exits: int
    hard: float
    soft: float
    states: float
    imitated: Imitated
    temperature: float = 1.0
    same_exit: bool = False
    answers_from: float = 0.0
    taught: bool = True

    @property
    def keep(self) -> Keep:
        return _KEEP[self.imitated]

    @property
    def num_terms(self) -> int:
        return 2 * self.num_exits + 1

    def initial(self, generator: torch.Generator) -> ObjectiveState:
        return {"answers": torch.tensor(float(self.answers_from == 0))}

    def terms(self, record: Record, state: ObjectiveState, teacher: Record | None = None) -> torch.Tensor:
        """M cross-entropies, M terms of eq. 2 against the teacher, and the distance of states; (2M + 1,)."""
        if record.labels is None or teacher is None:
            raise ValueError("a student needs labels and a teacher")
        ce = cross_entropy_per_exit(record.logits, record.labels)
        answers = teacher.logits if self.same_exit else teacher.logits[-1:]
        pairs = distillation_pairs(record.logits, self.temperature, kl=True, teacher_logits=answers)  # (M, T)
        soft = pairs.diagonal() if self.same_exit else pairs[:, 0]
        return torch.cat([ce, soft, distance(record, teacher, self.imitated).to(ce).unsqueeze(0)])

    def weights(self, state: ObjectiveState) -> torch.Tensor:
        device = state["answers"].device
        of_answers = torch.tensor([self.hard, self.soft], device=device).repeat_interleave(self.num_exits)
        return torch.cat([of_answers * state["answers"], torch.tensor([self.states], device=device)])

    def after_step(self, record: Record, state: ObjectiveState, progress: float) -> ObjectiveState:
        return {"answers": torch.full_like(state["answers"], float(progress >= self.answers_from))}


def distance(student: Record, teacher: Record, imitated: Imitated) -> torch.Tensor:
    """How far a student's states are from its teacher's, a scalar.

    patient: mean squared distance of normalised states, after each layer but the last, from those that the teacher has
    at the same share of its depth (Sun et al., 2019, eq. 7, averaged as in their code, to which their values of β
    belong). last: 1 − cosine of the last states, mean over positions that count (Sanh et al., 2019). all: mean squared
    difference of states, mean over positions that count, summed over the embeddings and the layers (Shen et al., 2022,
    section 3.2).
    """
    if imitated == "patient":
        assert student.hidden is not None
        assert teacher.hidden is not None
        n, of = len(student.hidden), len(teacher.hidden)
        if n == 1:  # there is no layer between
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
    """The mean over rows of the mean over a row's positions that count; values (B, L)."""
    if mask is None:
        return values.mean()
    weight = mask.to(values)
    return ((values * weight).sum(dim=1) / weight.sum(dim=1)).mean()
