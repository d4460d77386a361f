"""Adapt the driver to Ray Tune: a searcher, a scheduler, a stopper and a callback of a few lines each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune import Callback
from ray.tune.execution import tune_controller
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from tune.running.driver import Driver
from tune.running.failures import Failure, of_death

#: The keys of a trial's last result that Ray and :class:`DriverSearcher` read.
KEPT = {"done", "failure", "node_ip", "pid", "training_iteration", "trial_id"}


class _Unpickled:
    """Keep the driver out of the state that Ray pickles for a restore, which this project never uses."""

    def __reduce__(self) -> Any:
        return object, ()


class DriverSearcher(_Unpickled, Searcher):
    """Ask the driver for the next attempt; each retry of a configuration is a new trial for Ray."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(metric="training_iteration", mode="max")  # required by Ray, read by nobody
        self.driver = driver

    def suggest(self, trial_id: str) -> Any:
        attempt = self.driver.next_attempt(trial_id)
        if attempt is not None:
            return {"attempt": dataclasses.asdict(attempt)}
        # While others run, one of them may fail and need another attempt.
        return None if self.driver.running and not self.driver.stopping.reason() else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if not error:
            failure = (result or {}).get("failure")
            self.driver.trial_ended(trial_id, Failure(*failure) if failure else None)

    # The ledger is the only record of a sweep: Ray saves and restores nothing.

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None: ...


class DriverScheduler(_Unpickled, FIFOScheduler):
    """Run trials first come, first served, and stop those that the driver pruned."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self.driver = driver

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        running = self.driver.receive(result.get("records", [])) and self.driver.stopping.reason() is None
        decision: str = TrialScheduler.CONTINUE if running else TrialScheduler.STOP
        return decision


class DriverStopper(_Unpickled, Stopper):
    """End the session when the driver stops: after the current epochs, or at once on a signal.

    Ray then ends trials that still run after ten seconds.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.training = False  # whether a trial has a process

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.driver.stopping.reason() is not None and (self.driver.stopping.at_once or not self.training)


class DriverCallback(_Unpickled, Callback):
    """Hand a trial's last records and its failure to the driver, and beat on every turn of Ray's loop."""

    def __init__(self, driver: Driver, stopper: DriverStopper, beat: Callable[[], None]) -> None:
        self.driver, self.stopper, self.beat = driver, stopper, beat

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.driver.started_trials = lambda: {trial.trial_id for trial in trials if trial.status == Trial.RUNNING}
        self.beat()
        if self.driver.stopping.reason() is not None:
            self.stopper.training = any(trial.status == Trial.RUNNING for trial in trials)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if result.get("done"):
            self.driver.receive(result.get("records", []))  # Ray calls no scheduler for a trial's last result
        # Ray keeps every trial's last result, and three means of each number in it, until the sweep ends.
        for key in result.keys() - KEPT:
            del result[key]

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.driver.trial_ended(trial.trial_id, of_death(_error_of(trial), self.driver.hang_report(trial.trial_id)))


class KilledForMemory(RayActorError, OutOfMemoryError):
    """Ray's memory monitor killed a trial because its node ran out of memory."""

    def __init__(self, message: str) -> None:
        RayActorError.__init__(self, error_msg=message)


class MemoryAwareActors(RayActorManager):
    """Treat Ray's OutOfMemoryError as the end of one actor; Tune would take it for its own failure and end all trials."""

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        super()._actor_task_failed(tracked_actor_task, _as_actor_error(exception))

    def _actor_start_failed(self, tracked_actor: Any, exception: Exception) -> None:
        super()._actor_start_failed(tracked_actor, _as_actor_error(exception))


def _as_actor_error(exception: Exception) -> Exception:
    return KilledForMemory(str(exception)) if isinstance(exception, OutOfMemoryError) else exception


def use_memory_aware_actors() -> None:
    """Install :class:`MemoryAwareActors` for the Tuners of this process; Tune has no option for it."""
    tune_controller.RayActorManager = MemoryAwareActors


def _error_of(trial: Any) -> Any:
    """Return the error that ended a trial.

    Ray's own accessor reads the storage, where the file of this process arrives only later.
    """
    from ray import cloudpickle

    try:
        with open(trial.pickled_error_file, "rb") as f:  # written by this process just now
            return cloudpickle.load(f)
    except (OSError, TypeError, AttributeError, ImportError):
        return trial.get_error()
