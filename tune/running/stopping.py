"""Why a session of a sweep stops: a signal, a request, a used budget, or configurations that can't succeed."""

from __future__ import annotations

import time
from collections.abc import Callable

from tune.space import Budget
from tune.store.ledger import SweepState


class Stopping:
    """The reasons to stop a session.

    Attributes:
        budget: The limits of the sweep.
        halted: Why no further configuration could succeed; None while one may.
        signal: The number of the signal that arrived; None if none did.
    """

    def __init__(self, budget: Budget, gpus: float, stop_requested: Callable[[], bool], state: SweepState) -> None:
        """Start the session's clock; the arguments are those of :class:`tune.running.driver.Driver`."""
        self.budget, self._gpus, self._stop_requested, self._state = budget, gpus, stop_requested, state
        self._clock = time.monotonic()
        self.halted: str | None = None
        self.signal: int | None = None
        self._reason: str | None = None

    @property
    def at_once(self) -> bool:
        """Whether to stop before current epochs end: after a signal, the machine may vanish."""
        return self.signal is not None or self.halted is not None

    def reason(self) -> str | None:
        """Return why the sweep stops now, or None; once set, the reason stays."""
        if self._reason is None:
            if self.halted:
                self._reason = self.halted
            elif self.signal is not None:
                self._reason = "interrupted"
            elif self._stop_requested():
                self._reason = "stopped on request"
            else:
                self._reason = self.budget_used()
        return self._reason

    def budget_used(self) -> str | None:
        """Describe the budget that is used up; return None if none is."""
        b = self.budget
        if b.fold_epochs and self._state.fold_epochs >= b.fold_epochs:
            return f"the budget of {b.fold_epochs} fold-epochs is used"
        if b.hours and self.hours() >= b.hours:
            return f"the budget of {b.hours:g} hours is used"
        if b.gpu_hours and self._gpus * self._state.epoch_seconds / 3600 >= b.gpu_hours:
            return f"the budget of {b.gpu_hours:g} GPU-hours is used"
        return None

    @property
    def trials_used(self) -> bool:
        """Whether the budget allows no further configuration."""
        return bool(self.budget.trials) and len(self._state.configs) >= (self.budget.trials or 0)

    def hours(self) -> float:
        """Return the wall-clock hours over all sessions of the sweep."""
        return (self._state.elapsed + self.seconds()) / 3600

    def seconds(self) -> float:
        """Return the duration of this session."""
        # The monotonic clock, since the system time may be set back.
        return time.monotonic() - self._clock
