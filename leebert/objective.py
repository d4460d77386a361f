"""Eq. 5: a record of a forward pass becomes loss terms, and ω joins them into one loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from leebert.config import TrainConfig
from leebert.losses import TEACHERS, cross_entropy_per_exit, distillation_pairs
from leebert.methods import METHODS
from leebert.record import Keep, Record
from leebert.weights import PARAMETRISATIONS, Parametrisation, Terms, random_weights

#: An objective's own state: tensors by name, passed in and returned, and kept in checkpoints.
ObjectiveState = dict[str, torch.Tensor]


class Objective(Protocol):
    """A loss that is a weighted sum of terms. Its state is passed and returned, never hidden; weights never need a graph."""

    @property
    def num_terms(self) -> int: ...

    @property
    def keep(self) -> Keep:
        """What it needs of a record besides logits and labels: nothing (`logits`), what exits see, or all states."""
        ...

    @property
    def taught(self) -> bool:
        """Whether its terms need what the stage's teacher makes of the batch."""
        ...

    def initial(self, generator: torch.Generator) -> ObjectiveState:
        """The state before the first step; `generator` (CPU) is for what is drawn once, such as rand's weights."""
        ...

    def terms(self, record: Record, state: ObjectiveState, teacher: Record | None = None) -> torch.Tensor:
        """The loss terms l, (n,), with a graph where the record has one.

        Each is a mean over the record's rows: `accumulate` weighs the parts of a batch by their rows. `teacher` is a
        record of the same rows, without a graph, whose exits teach in place of the record's own: that of the stage's
        teacher, or the record's own from elsewhere in θ. Teachers that are not detached move with θ, and are always
        the record's own.
        """
        ...

    def weights(self, state: ObjectiveState) -> torch.Tensor:
        """w, (n,), without a graph: the loss is w·l."""
        ...

    def after_step(self, record: Record, state: ObjectiveState, progress: float) -> ObjectiveState:
        """The state after a step of θ (a temperature that anneals, say); most return it as it is.

        `record` is the whole batch's from before the update, without a graph; `progress` the share of the stage's
        updates done, this one included.
        """
        ...


@dataclasses.dataclass(frozen=True)
class ExitObjective:
    """Eq. 5, L(x, y; θ, ω) = Σ_m w_m CE(p_m, y) + Σ_m Σ_{t∈T(m)} w_{m,t} L_KD(p_t, p_m) / (M·|T(m)|).

    With `random` the weights are the rand baseline's draw, kept in the state and never learned; with `fixed`, (n,),
    they are these. `moves` makes the state after a step of θ from the batch's record, the state and the share of the stage's
    updates done; with `moving_temperature` the state holds the temperature, too, under `temperature`.
    """

    layout: Terms
    parametrisation: Parametrisation
    temperature: float = 1.0
    detach_teacher: bool = True
    kl: bool = False
    random: bool = False
    fixed: tuple[float, ...] | None = None
    moves: Callable[[Record, ObjectiveState, float], ObjectiveState] | None = None
    moving_temperature: bool = False
    keep: Keep = "logits"
    taught: bool = False

    @classmethod
    def weighted(cls, weights: Sequence[float]) -> ExitObjective:
        """Σ_m w_m CE_m under fixed weights (M,), without distillation."""
        return cls(Terms.of(TEACHERS["none"](len(weights))), PARAMETRISATIONS["raw"], fixed=tuple(weights))

    @classmethod
    def of(cls, config: TrainConfig, num_exits: int) -> ExitObjective:
        """The objective that a training configuration and its method describe, for a model with M exits."""
        method = METHODS[config.algorithm]
        return cls(
            layout=Terms.of(TEACHERS[method.teachers or config.teachers](num_exits)),
            parametrisation=PARAMETRISATIONS["raw" if method.draws_weights else config.parametrisation],
            temperature=config.temperature,
            detach_teacher=config.detach_teacher,
            kl=config.distillation == "kl",
            random=method.draws_weights,
        )

    @property
    def num_terms(self) -> int:
        return len(self.layout)

    def initial(self, generator: torch.Generator) -> ObjectiveState:
        if self.random:
            omega = random_weights(self.layout, generator)
        elif self.fixed is not None:
            omega = torch.tensor(self.fixed)
        else:
            omega = self.parametrisation.initial(self.layout)
        return (
            {"omega": omega, "temperature": torch.tensor(self.temperature)}
            if self.moving_temperature
            else {"omega": omega}
        )

    def terms(self, record: Record, state: ObjectiveState, teacher: Record | None = None) -> torch.Tensor:
        """l (n,): M cross-entropies, then each pair's distillation term with its 1/(M·|T(m)|)."""
        if record.labels is None:
            raise ValueError("the cross-entropy of eq. 5 needs labels")
        ce = cross_entropy_per_exit(record.logits, record.labels)
        if self.num_terms == self.layout.num_exits:
            return ce
        pairs = distillation_pairs(
            record.logits,
            self.tau(state),
            detach_teacher=self.detach_teacher,
            kl=self.kl,
            teacher_logits=teacher.logits if teacher is not None and self.detach_teacher else None,
        )  # (M, M)
        kd = pairs[self.layout.pairs] * self.layout.scale.to(pairs)
        return torch.cat([ce, kd])

    def weights(self, state: ObjectiveState) -> torch.Tensor:
        return self.parametrisation.weights(state["omega"], self.layout)

    def pullback(self, state: ObjectiveState, losses: torch.Tensor) -> torch.Tensor:
        return self.parametrisation.pullback(state["omega"], losses, self.layout)

    def tau(self, state: ObjectiveState) -> float | torch.Tensor:
        """The temperature of eqs. 2-3."""
        return state["temperature"] if self.moving_temperature else self.temperature

    def after_step(self, record: Record, state: ObjectiveState, progress: float) -> ObjectiveState:
        return self.moves(record, state, progress) if self.moves else state
