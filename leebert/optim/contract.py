"""What an optimiser of ω is, and what it can do: it sees a :class:`Level` and its own position in its cycle.

The position is passed in and returned; an optimiser of ω has no other state. Each stands in the module of the method
that it makes (:mod:`leebert.methods`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from leebert.record import Batch


class LookAhead(Protocol):
    """A step θ → θ' on a batch as it was taken, to be differentiated by that batch's gradient g.

    Vectors of θ's size are sequences of tensors, one per parameter, always in the same order.
    """

    def pullback(self, v: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """(∂θ'/∂g)ᵀ v, which for SGD is −λ1·v."""
        ...

    def losses_at(self, direction: Sequence[torch.Tensor], distance: torch.Tensor) -> torch.Tensor:
        """l on the step's batch at θ + distance·direction, with its dropout masks and its detached teachers, those at θ."""
        ...


class OmegaRule(Protocol):
    """A step of ω of a method's own, in place of the torch optimiser that the option `omega_optimizer` names."""

    def __call__(
        self, omega: torch.Tensor, gradient: torch.Tensor, rate: float, memory: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Compute the next ω, and leave the arguments but `memory` as they are.

        Args:
            omega: The present ω.
            gradient: ∇ω L of the loss terms that :meth:`Level.omega_step` was given, in ω's shape; terms given for λ1 are
                multiplied by λ1 / λ2 in it.
            rate: λ2, which multiplies every change: at a rate near 0 ω stays.
            memory: What the rule keeps from step to step, such as a momentum: tensors by name, empty before the first
                step of a stage. Checkpoints hold it.

        Returns:
            The next ω, in the same shape.
        """
        ...


class Level(Protocol):
    """What an optimiser of ω can do within one step; loss terms l are (n,) vectors without a graph.

    Whatever `losses`, `gradient` and `next_d2` draw is drawn from streams of their own, and a replayed look-ahead from a copy
    of the step's: θ's steps see the same dropout masks on the same batches under every method.
    """

    def theta_step(self, batch: Batch) -> torch.Tensor:
        """θ ← θ − λ1 ∇θ L(θ, ω) on a batch; returns l there, taken before the update."""
        ...

    def look_ahead(self, batch: Batch) -> LookAhead:
        """The same step as `theta_step`, returned with all that it was computed from."""
        ...

    def losses(self, *batches: Batch) -> tuple[torch.Tensor, ...]:
        """l on each batch at the present θ: forward passes without gradients, one per batch."""
        ...

    def gradient(self, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """l and ∇θ L(θ, ω) on a batch at the present θ, from one forward and backward; nothing moves."""
        ...

    def omega_step(
        self,
        *,
        at_lr_theta: torch.Tensor | None = None,
        at_lr_omega: torch.Tensor | None = None,
        rule: OmegaRule | None = None,
    ) -> None:
        """ω ← ω − λ1 ∇ω L − λ2 ∇ω L, each gradient from the terms l given for that rate.

        Args:
            at_lr_theta: (n,) terms l whose gradient counts at λ1.
            at_lr_omega: (n,) terms l whose gradient counts at λ2.
            rule: Makes the step; None: the optimiser that the option `omega_optimizer` names.
        """
        ...

    def next_d2(self) -> Batch:
        """The next batch B2 of this epoch's D2."""
        ...


class OmegaOptimizer(Protocol):
    """One way to learn ω, or to leave it as it is."""

    @property
    def splits_data(self) -> bool:
        """Whether θ sees only one half of the data (D1), so that ω can see the other (D2)."""
        ...

    def step(self, level: Level, b1: Batch, position: int) -> int:
        """One update of θ on B1 and what belongs to it; returns the position in the cycle for the next step."""
        ...
