"""The interface of an optimiser of ω, and the operations (:class:`Level`) that it can use in a step.

An optimiser of ω has no state besides its position in its cycle, which is passed in and returned. Each one is in the module
of its method (:mod:`leebert.methods`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from leebert.optim.outer import OuterObjective
    from leebert.record import Batch


class LookAhead(Protocol):
    """A completed step θ → θ' on a batch, differentiable with respect to the batch's gradient g.

    Vectors of θ's size are sequences of tensors, one per parameter, always in the same order.
    """

    def pullback(self, v: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute (∂θ'/∂g)ᵀ v; for SGD it is −λ1·v.

        Args:
            v: A vector of θ's size.

        Returns:
            A vector of θ's size.
        """
        ...

    def losses_at(self, direction: Sequence[torch.Tensor], distance: torch.Tensor) -> torch.Tensor:
        """Compute l on the step's batch at θ + distance·direction, with the step's dropout masks and the teachers at θ.

        Args:
            direction: A vector of θ's size.
            distance: A scalar.

        Returns:
            Loss terms l, (n,), without a graph.
        """
        ...

    def losses_at_start(self) -> torch.Tensor:
        """Return l, (n,), on the step's batch at θ: in float32 those of the step's own forward pass."""
        ...


class OmegaRule(Protocol):
    """A method's own update of ω, in place of the torch optimiser of the option `omega_optimizer`."""

    def __call__(
        self, omega: torch.Tensor, gradient: torch.Tensor, rate: float, memory: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Compute the next ω; only `memory` may be changed.

        Args:
            omega: The present ω.
            gradient: ∇ω L of the loss terms passed to :meth:`Level.omega_step`, in ω's shape; terms for λ1 are multiplied by
                λ1 / λ2.
            rate: λ2, a factor of every change: at a rate near 0, ω stays.
            memory: State of the rule between steps, such as a momentum: tensors by name, empty before the first step of a
                stage, and stored in checkpoints.

        Returns:
            The next ω, in the same shape.
        """
        ...


class Level(Protocol):
    """The operations of an optimiser of ω within one step. Loss terms l are (n,) vectors without a graph.

    `losses`, `gradient` and `next_d2` have their own random streams, and a replayed look-ahead copies the step's, so that
    θ's steps have the same dropout masks on the same batches under every method.
    """

    def theta_step(self, batch: Batch, *, before: Callable[[torch.Tensor], None] | None = None) -> torch.Tensor:
        """Update θ ← θ − λ1 ∇θ L(θ, ω) on a batch.

        Args:
            batch: Tensors by name, with B samples.
            before: Called with l between the forward and the backward pass; it may update ω, and θ's gradient then has the
                new weights. With `accumulate` above 1 it costs a forward pass of its own, since no part's graph can wait.

        Returns:
            Loss terms l, (n,), from before the update.
        """
        ...

    def look_ahead(self, batch: Batch) -> LookAhead:
        """Update θ as :meth:`theta_step` does, and keep the step for differentiation.

        Args:
            batch: Tensors by name, with B samples.

        Returns:
            The step.
        """
        ...

    def losses(self, *batches: Batch) -> tuple[torch.Tensor, ...]:
        """Compute l on each batch at the present θ, without gradients; one forward pass per batch.

        Args:
            *batches: Tensors by name, with B samples each.

        Returns:
            Loss terms l, (n,), of each batch.
        """
        ...

    def gradient(self, batch: Batch, outer: OuterObjective | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Differentiate an objective on a batch by the present θ, in one forward and backward pass; θ and ω stay.

        Args:
            batch: Tensors by name, with B samples.
            outer: The objective, a mean over samples; None: L(θ, ω).

        Returns:
            Loss terms l, (n,), and the gradient, a vector of θ's size.
        """
        ...

    def omega_step(
        self,
        *,
        at_lr_theta: torch.Tensor | None = None,
        at_lr_omega: torch.Tensor | None = None,
        rule: OmegaRule | None = None,
    ) -> None:
        """Update ω ← ω − λ1 ∇ω L − λ2 ∇ω L, each gradient from the terms l given for its rate.

        Args:
            at_lr_theta: (n,) terms l whose gradient is applied at λ1.
            at_lr_omega: (n,) terms l whose gradient is applied at λ2.
            rule: Computes the next ω; None: the optimiser of the option `omega_optimizer`.
        """
        ...

    def moving_average(self, v: Sequence[torch.Tensor], decay: float) -> Sequence[torch.Tensor]:
        """Average vectors of θ's size over the steps of a stage, with exponential decay; checkpoints hold the average.

        Args:
            v: The vector of this step, one tensor per parameter.
            decay: Weight of the average so far, below 1; the first call returns `v`.

        Returns:
            The average, one tensor per parameter; the next call changes it.
        """
        ...

    def weights(self) -> torch.Tensor:
        """Return the present weights w, (n,), without a graph."""
        ...

    def next_d2(self) -> Batch:
        """Return the next batch B2 of this epoch's D2."""
        ...


class OmegaOptimizer(Protocol):
    """An optimiser of ω, or fixed weights."""

    @property
    def splits_data(self) -> bool:
        """Whether θ trains on one half of the data (D1) and ω on the other half (D2)."""
        ...

    def step(self, level: Level, b1: Batch, position: int) -> int:
        """Update θ on B1, and ω as the method prescribes.

        Args:
            level: The operations of the step.
            b1: A batch of D1.
            position: Position in the cycle, from 0.

        Returns:
            Position in the cycle for the next step.
        """
        ...
