"""ω: the weights of the loss terms, in five parametrisations with one interface.

Eq. 5 is linear in the weights, so ∂L/∂w is the vector of loss terms, and the gradient of ω is Jᵀl with J = ∂w/∂ω. Every
parametrisation computes this product as `pullback`, without a backward pass. All start with weight 1 for every term. Vectors
of weights and terms have n = M + |pairs| entries, in the order of :class:`Terms`; ω has n, too, or 2M under `exit_teacher`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import torch
from torch.nn import functional as F

from leebert.losses import mean_over_teachers


@dataclasses.dataclass(frozen=True)
class Terms:
    """The layout of the loss terms of eq. 5: M cross-entropies, then one distillation term per pair with t ∈ T(m).

    LAE has n = M² terms, LLE M(M+1)/2, last 2M−1 (144, 78 and 23 at M = 12).

    Attributes:
        teachers: (M, M) bool mask, [student, teacher].
        student: (n,) int64, the exit that a term trains.
        is_distillation: (n,) bool.
        scale: (|pairs|,) float64, 1 / (M·|T(m)|).
        pairs: Student and teacher of each pair, (|pairs|,) int64 each.
    """

    teachers: torch.Tensor
    student: torch.Tensor
    is_distillation: torch.Tensor
    scale: torch.Tensor
    pairs: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def of(cls, teachers: torch.Tensor) -> Terms:
        """Make the layout for an (M, M) mask of teachers, [student, teacher]."""
        m = teachers.shape[0]
        students = teachers.nonzero()[:, 0]
        kd = torch.cat([torch.zeros(m, dtype=torch.bool), torch.ones(len(students), dtype=torch.bool)])
        pairs = (students, teachers.nonzero()[:, 1])
        return cls(teachers, torch.cat([torch.arange(m), students]), kd, mean_over_teachers(teachers)[teachers], pairs)

    @property
    def num_exits(self) -> int:
        return int(self.teachers.shape[0])

    def __len__(self) -> int:
        return len(self.student)

    def split(self, vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Split a vector (n,) into cross-entropy entries (M,) and distillation entries (M, M), 0 for exits that are no teachers."""
        m = self.num_exits
        pairs = torch.zeros(m, m, dtype=vector.dtype, device=vector.device)
        pairs[self.pairs] = vector[m:]
        return vector[:m], pairs


class Parametrisation(Protocol):
    """A mapping of ω to weights, with pure functions; ω is (k,) and l is (n,), on any device."""

    def initial(self, terms: Terms) -> torch.Tensor:
        """Return the ω, (k,), at which every weight is 1."""
        ...

    def weights(self, omega: torch.Tensor, terms: Terms) -> torch.Tensor:
        """Compute the loss weights.

        Args:
            omega: ω, (k,).
            terms: The layout of the n loss terms.

        Returns:
            w(ω), (n,).
        """
        ...

    def pullback(self, omega: torch.Tensor, losses: torch.Tensor, terms: Terms) -> torch.Tensor:
        """Compute ∇ω (w·l) = Jᵀ l.

        Args:
            omega: ω, (k,).
            losses: Loss terms l, (n,).
            terms: The layout of the n loss terms.

        Returns:
            The gradient, (k,).
        """
        ...


class Raw:
    """w = ω, as in the paper's equations. Losses are positive, so weights only shrink and can become negative."""

    def initial(self, terms: Terms) -> torch.Tensor:
        return torch.ones(len(terms))

    def weights(self, omega: torch.Tensor, terms: Terms) -> torch.Tensor:
        return omega

    def pullback(self, omega: torch.Tensor, losses: torch.Tensor, terms: Terms) -> torch.Tensor:
        return losses


class Softplus:
    """w = log(1 + e^ω): weights stay positive but only shrink."""

    def initial(self, terms: Terms) -> torch.Tensor:
        return torch.full((len(terms),), math.log(math.e - 1))

    def weights(self, omega: torch.Tensor, terms: Terms) -> torch.Tensor:
        return F.softplus(omega)

    def pullback(self, omega: torch.Tensor, losses: torch.Tensor, terms: Terms) -> torch.Tensor:
        return torch.sigmoid(omega) * losses


@dataclasses.dataclass(frozen=True)
class GroupedSoftmax:
    """w = |g|·softmax(ω) within each group g of terms, so that a group's weights always sum to |g|.

    A group of one term keeps weight 1 and gets no gradient.

    Attributes:
        by_exit: True: a group is all terms of one exit (`exit_softmax`, the rand baseline's normalisation). False: the
            cross-entropies form one group, and the teachers of each student another (`group_softmax`).
    """

    by_exit: bool

    def groups(self, terms: Terms) -> torch.Tensor:
        """Return the group of each term, (n,) int64."""
        if self.by_exit:
            return terms.student
        return torch.where(terms.is_distillation, terms.student + 1, 0)

    def _sums(self, values: torch.Tensor, group: torch.Tensor, terms: Terms) -> torch.Tensor:
        # There are at most M + 1 groups: with a fixed size, a GPU need not synchronise to count them.
        zeros = torch.zeros(terms.num_exits + 1, dtype=values.dtype, device=values.device)
        return zeros.index_add(0, group, values)

    def initial(self, terms: Terms) -> torch.Tensor:
        return torch.zeros(len(terms))

    def weights(self, omega: torch.Tensor, terms: Terms) -> torch.Tensor:
        group = self.groups(terms).to(omega.device)
        size = self._sums(torch.ones_like(omega), group, terms)
        # Subtract the largest ω of each group, since exp of a large number overflows.
        top = torch.full_like(size, -torch.inf).scatter_reduce(0, group, omega.detach(), "amax")
        e = (omega - top[group]).exp()
        return size[group] * e / self._sums(e, group, terms)[group]

    def pullback(self, omega: torch.Tensor, losses: torch.Tensor, terms: Terms) -> torch.Tensor:
        group = self.groups(terms).to(omega.device)
        w = self.weights(omega, terms)
        size = self._sums(torch.ones_like(omega), group, terms)
        mean = self._sums(w * losses, group, terms) / size.clamp(min=1)
        return w * (losses - mean[group])


class ExitTeacher:
    """w = u_m · s_{m,t} with one number per exit and one per teacher, 2M in all, for data too small for M² weights.

    u = M·softmax(a) over exits weighs all terms of an exit. Within the exit, s = |m|·softmax over its |m| terms, with 0 for the
    cross-entropy and b_t for teacher t, which every student shares. ω is a, then b. The weights of each exit sum to u_m·|m|.
    """

    def _logits(self, omega: torch.Tensor, terms: Terms) -> torch.Tensor:
        """Return 0 for cross-entropies and b_t for pairs, (n,)."""
        m, teacher = terms.num_exits, terms.pairs[1].to(omega.device)
        return torch.cat([torch.zeros(m, dtype=omega.dtype, device=omega.device), omega[m:][teacher]])

    def initial(self, terms: Terms) -> torch.Tensor:
        return torch.zeros(2 * terms.num_exits)

    def weights(self, omega: torch.Tensor, terms: Terms) -> torch.Tensor:
        m = terms.num_exits
        within = _BY_EXIT.weights(self._logits(omega, terms), terms)
        return (m * omega[:m].softmax(dim=0))[terms.student.to(omega.device)] * within

    def pullback(self, omega: torch.Tensor, losses: torch.Tensor, terms: Terms) -> torch.Tensor:
        m, student = terms.num_exits, terms.student.to(omega.device)
        logits, u = self._logits(omega, terms), m * omega[:m].softmax(dim=0)
        zeros = torch.zeros(m, dtype=omega.dtype, device=omega.device)
        by_exit = zeros.index_add(0, student, _BY_EXIT.weights(logits, terms) * losses)  # ∂L/∂u
        a = u * (by_exit - (u @ by_exit) / m)
        by_term = _BY_EXIT.pullback(logits, losses * u[student], terms)
        b = zeros.index_add(0, terms.pairs[1].to(omega.device), by_term[m:])
        return torch.cat([a, b])


_BY_EXIT = GroupedSoftmax(by_exit=True)

PARAMETRISATIONS: dict[str, Parametrisation] = {
    "raw": Raw(),
    "softplus": Softplus(),
    "exit_softmax": _BY_EXIT,
    "group_softmax": GroupedSoftmax(by_exit=False),
    "exit_teacher": ExitTeacher(),
}


def random_weights(terms: Terms, generator: torch.Generator) -> torch.Tensor:
    """Draw the weights of the rand baseline: from {1, …, 50}, normalised to sum 1 over each exit's terms.

    Args:
        terms: The layout of the n loss terms.
        generator: Source of the random numbers, on the CPU.

    Returns:
        Weights, (n,).
    """
    draws = torch.randint(1, 51, (len(terms),), generator=generator).float()
    totals = torch.zeros(terms.num_exits).index_add(0, terms.student, draws)
    return draws / totals[terms.student]
