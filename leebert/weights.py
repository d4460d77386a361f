"""ω: the weights of the loss terms, under one contract and four parametrisations.

Eq. 5 is linear in the weights, so ∂L/∂w is the vector of loss terms itself and the gradient for ω is Jᵀl with
J = ∂w/∂ω: every parametrisation gives that product as `pullback`, and no backward pass is ever needed.
All start from weight 1 on every term. Vectors have n = M + |pairs| entries, in the order of :class:`Terms`.
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

    LAE has M² of them, LLE M(M+1)/2, last 2M−1 (144, 78 and 23 at M = 12).
    """

    teachers: torch.Tensor  # (M, M) bool, [student, teacher]
    student: torch.Tensor  # (n,) int64: the exit that a term trains
    is_distillation: torch.Tensor  # (n,) bool
    scale: torch.Tensor  # (|pairs|,) float64: 1 / (M·|T(m)|)
    pairs: tuple[torch.Tensor, torch.Tensor]  # student and teacher of each pair, (|pairs|,) int64

    @classmethod
    def of(cls, teachers: torch.Tensor) -> Terms:
        """The layout for an (M, M) mask of who teaches whom."""
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
        """(n,) → cross-entropy entries (M,), distillation entries (M, M) with 0 where nobody teaches."""
        m = self.num_exits
        pairs = torch.zeros(m, m, dtype=vector.dtype, device=vector.device)
        pairs[self.pairs] = vector[m:]
        return vector[:m], pairs


class Parametrisation(Protocol):
    """How ω becomes weights. Both functions are pure; ω and l are (n,) tensors on any device."""

    def initial(self, terms: Terms) -> torch.Tensor:
        """ω (n,) at which every weight is 1."""
        ...

    def weights(self, omega: torch.Tensor, terms: Terms) -> torch.Tensor:
        """w(ω), (n,)."""
        ...

    def pullback(self, omega: torch.Tensor, losses: torch.Tensor, terms: Terms) -> torch.Tensor:
        """∇ω (w·l) = Jᵀ l, (n,), for a vector of loss terms l."""
        ...


class Raw:
    """The equations as printed: w = ω. Losses are positive, so these weights only shrink and may turn negative."""

    def initial(self, terms: Terms) -> torch.Tensor:
        return torch.ones(len(terms))

    def weights(self, omega: torch.Tensor, terms: Terms) -> torch.Tensor:
        return omega

    def pullback(self, omega: torch.Tensor, losses: torch.Tensor, terms: Terms) -> torch.Tensor:
        return losses


class Softplus:
    """w = log(1 + e^ω): keeps the sign; the weights still shrink."""

    def initial(self, terms: Terms) -> torch.Tensor:
        return torch.full((len(terms),), math.log(math.e - 1))

    def weights(self, omega: torch.Tensor, terms: Terms) -> torch.Tensor:
        return F.softplus(omega)

    def pullback(self, omega: torch.Tensor, losses: torch.Tensor, terms: Terms) -> torch.Tensor:
        return torch.sigmoid(omega) * losses


@dataclasses.dataclass(frozen=True)
class GroupedSoftmax:
    """w = |g|·softmax(ω) within each group g of terms, which fixes the scale: a group's weights always sum to |g|.

    `by_exit`: a group is all terms of one exit (`exit_softmax`, the rand baseline's normalisation). Otherwise the
    cross-entropies form one group and each student's teachers another (`group_softmax`). A group of one term stays
    at weight 1 and gets no gradient.
    """

    by_exit: bool

    def groups(self, terms: Terms) -> torch.Tensor:
        """(n,) int64, the group of each term."""
        if self.by_exit:
            return terms.student
        return torch.where(terms.is_distillation, terms.student + 1, 0)

    def _sums(self, values: torch.Tensor, group: torch.Tensor, terms: Terms) -> torch.Tensor:
        # At most one group per exit and one more: a fixed size spares a GPU the question how many there are.
        zeros = torch.zeros(terms.num_exits + 1, dtype=values.dtype, device=values.device)
        return zeros.index_add(0, group, values)

    def initial(self, terms: Terms) -> torch.Tensor:
        return torch.zeros(len(terms))

    def weights(self, omega: torch.Tensor, terms: Terms) -> torch.Tensor:
        group = self.groups(terms).to(omega.device)
        size = self._sums(torch.ones_like(omega), group, terms)
        # The largest ω of each group is taken off first: exp of a large number overflows.
        top = torch.full_like(size, -torch.inf).scatter_reduce(0, group, omega.detach(), "amax")
        e = (omega - top[group]).exp()
        return size[group] * e / self._sums(e, group, terms)[group]

    def pullback(self, omega: torch.Tensor, losses: torch.Tensor, terms: Terms) -> torch.Tensor:
        group = self.groups(terms).to(omega.device)
        w = self.weights(omega, terms)
        size = self._sums(torch.ones_like(omega), group, terms)
        mean = self._sums(w * losses, group, terms) / size.clamp(min=1)
        return w * (losses - mean[group])


PARAMETRISATIONS: dict[str, Parametrisation] = {
    "raw": Raw(),
    "softplus": Softplus(),
    "exit_softmax": GroupedSoftmax(by_exit=True),
    "group_softmax": GroupedSoftmax(by_exit=False),
}


def random_weights(terms: Terms, generator: torch.Generator) -> torch.Tensor:
    """The rand baseline: weights drawn from {1, …, 50}, then normalised so that the terms at each exit sum to 1; (n,)."""
    draws = torch.randint(1, 51, (len(terms),), generator=generator).float()
    totals = torch.zeros(terms.num_exits).index_add(0, terms.student, draws)
    return draws / totals[terms.student]
