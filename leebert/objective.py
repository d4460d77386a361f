"""Eq. 5: a record of a forward pass becomes loss terms, and ω joins them into one loss."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch

from leebert.config import TrainConfig
from leebert.losses import TEACHERS, cross_entropy_per_exit, distillation_pairs
from leebert.record import Record
from leebert.weights import PARAMETRISATIONS, Parametrisation, Terms, random_weights

#: An objective's own state: tensors by name, passed in and returned, and kept in checkpoints.
State = dict[str, torch.Tensor]


class Objective(Protocol):
    """A loss that is a weighted sum of terms. Its state is passed and returned, never hidden; weights never need a graph."""

    @property
    def num_terms(self) -> int: ...

    def initial(self, generator: torch.Generator) -> State:
        """The state before the first step; `generator` (CPU) is for what is drawn once, such as rand's weights."""
        ...

    def terms(self, record: Record, state: State, teacher: Record | None = None) -> torch.Tensor:
        """The loss terms l, (n,), with a graph where the record has one.

        `teacher` is a record of the same rows whose exits are the teachers in place of the record's own. Teachers that
        are not detached move with θ, and are always the record's own.
        Each is a mean over the record's rows: `accumulate` weighs the parts of a batch by their rows.
        """
        ...

    def weights(self, state: State) -> torch.Tensor:
        """w, (n,), without a graph: the loss is w·l."""
        ...

    def after_step(self, record: Record, state: State) -> State:
        """The state after a step of θ (a temperature that anneals, say); most return it as it is.

        `record` is the whole batch's from before the update, without a graph.
        """
        ...


class LearnedWeights(Objective, Protocol):
    """An objective whose weights are w(ω), with ω in its state under `omega`."""

    def pullback(self, state: State, losses: torch.Tensor) -> torch.Tensor:
        """∇ω (w·l) for terms l, (n,); analytic, since the loss is linear in the weights."""
        ...


@dataclasses.dataclass(frozen=True)
class ExitObjective:
    """Eq. 5, L(x, y; θ, ω) = Σ_m w_m CE(p_m, y) + Σ_m Σ_{t∈T(m)} w_{m,t} L_KD(p_t, p_m) / (M·|T(m)|).

    With `random` the weights are the rand baseline's draw, kept in the state and never learned.
    """

    layout: Terms
    parametrisation: Parametrisation
    temperature: float = 1.0
    detach_teacher: bool = True
    kl: bool = False
    random: bool = False

    @classmethod
    def of(cls, config: TrainConfig, num_exits: int) -> ExitObjective:
        """The objective that a training configuration describes, for a model with M exits."""
        return cls(
            layout=Terms.of(TEACHERS[config.teachers](num_exits)),
            parametrisation=PARAMETRISATIONS["raw" if config.algorithm == "rand" else config.parametrisation],
            temperature=config.temperature,
            detach_teacher=config.detach_teacher,
            kl=config.distillation == "kl",
            random=config.algorithm == "rand",
        )

    @property
    def num_terms(self) -> int:
        return len(self.layout)

    def initial(self, generator: torch.Generator) -> State:
        if self.random:
            return {"omega": random_weights(self.layout, generator)}
        return {"omega": self.parametrisation.initial(self.layout)}

    def terms(self, record: Record, state: State, teacher: Record | None = None) -> torch.Tensor:
        """l (n,): M cross-entropies, then each pair's distillation term with its 1/(M·|T(m)|)."""
        if record.labels is None:
            raise ValueError("the cross-entropy of eq. 5 needs labels")
        ce = cross_entropy_per_exit(record.logits, record.labels)
        if self.num_terms == self.layout.num_exits:
            return ce
        pairs = distillation_pairs(
            record.logits,
            self.temperature,
            detach_teacher=self.detach_teacher,
            kl=self.kl,
            teacher_logits=teacher.logits if teacher is not None and self.detach_teacher else None,
        )  # (M, M)
        kd = pairs[self.layout.pairs] * self.layout.scale.to(pairs)
        return torch.cat([ce, kd])

    def weights(self, state: State) -> torch.Tensor:
        return self.parametrisation.weights(state["omega"], self.layout)

    def pullback(self, state: State, losses: torch.Tensor) -> torch.Tensor:
        return self.parametrisation.pullback(state["omega"], losses, self.layout)

    def after_step(self, record: Record, state: State) -> State:
        return state
