"""Eq. 5: loss terms from a record of a forward pass, and their sum weighted by ω."""

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

#: State of an objective: tensors by name, passed in and returned, and stored in checkpoints.
ObjectiveState = dict[str, torch.Tensor]


class Objective(Protocol):
    """A loss that is a weighted sum of n terms. Its state is passed in and returned; weights have no graph."""

    @property
    def num_terms(self) -> int: ...

    @property
    def keep(self) -> Keep:
        """What the terms need besides logits and labels: nothing (`logits`), the inputs of exits, or all states."""
        ...

    @property
    def taught(self) -> bool:
        """Whether the terms need the record of the stage's teacher."""
        ...

    def initial(self, generator: torch.Generator) -> ObjectiveState:
        """Make the state before the first step; `generator` (CPU) is for values drawn once, such as rand's weights."""
        ...

    def terms(self, record: Record, state: ObjectiveState, teacher: Record | None = None) -> torch.Tensor:
        """Compute the loss terms l.

        Args:
            record: A record of B samples.
            state: The objective's state.
            teacher: A record of the same samples, without a graph, whose exits are the teachers: of the stage's teacher, or
                of the same model at another θ. None: the exits of `record` itself. Teachers that are not detached are always
                the exits of `record`.

        Returns:
            (n,), each a mean over samples; with a graph if the record has one.
        """
        ...

    def weights(self, state: ObjectiveState) -> torch.Tensor:
        """Return w, (n,), without a graph; the loss is w·l."""
        ...

    def after_step(self, record: Record, state: ObjectiveState, progress: float) -> ObjectiveState:
        """Update the state after a step of θ, such as an annealed temperature; most objectives return it unchanged.

        Args:
            record: The batch's record from before the update, without a graph.
            state: The state in the step.
            progress: Completed share of the stage's updates, this one included.
        """
        ...


@dataclasses.dataclass(frozen=True)
class ExitObjective:
    """Eq. 5, L(x, y; θ, ω) = Σ_m w_m CE(p_m, y) + Σ_m Σ_{t∈T(m)} w_{m,t} L_KD(p_t, p_m) / (M·|T(m)|).

    Attributes:
        layout: The layout of the terms.
        parametrisation: The mapping of ω to weights.
        temperature: τ.
        detach_teacher: Whether teachers get no gradient.
        kl: Whether terms subtract the teacher's entropy.
        random: Whether weights are the rand baseline's draw, which is kept in the state.
        fixed: (n,) fixed weights; None: none.
        moves: As `after_step`; None: the state does not change.
        moving_temperature: Whether the state holds the temperature, under `temperature`.
        keep: What the terms need of a record.
        taught: Whether the terms need the record of the stage's teacher.
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
        """Make Σ_m w_m CE_m with fixed weights (M,), without distillation."""
        return cls(Terms.of(TEACHERS["none"](len(weights))), PARAMETRISATIONS["raw"], fixed=tuple(weights))

    @classmethod
    def of(cls, config: TrainConfig, num_exits: int) -> ExitObjective:
        """Make the objective of a training configuration and its method.

        Args:
            config: The configuration.
            num_exits: M.

        Returns:
            Eq. 5 with the configured teachers, temperature and parametrisation.
        """
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
        """Compute l: M cross-entropies, then each pair's distillation term with its factor 1/(M·|T(m)|).

        Args:
            record: A record of B samples with labels.
            state: The objective's state.
            teacher: As :meth:`Objective.terms`.

        Returns:
            (n,), each a mean over samples.

        Raises:
            ValueError: The record has no labels.
        """
        labels = record.labels_by_exit
        if labels is None:
            raise ValueError("the cross-entropy of eq. 5 needs labels")
        ce = cross_entropy_per_exit(record.logits, labels)
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
        """Return the temperature of eqs. 2-3."""
        return state["temperature"] if self.moving_temperature else self.temperature

    def after_step(self, record: Record, state: ObjectiveState, progress: float) -> ObjectiveState:
        return self.moves(record, state, progress) if self.moves else state
