"""The driver plugged into Ray Tune: a searcher, a scheduler, a stopper and a callback, each a few lines."""

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

#: What Ray, and the searcher above, read of a trial's last result.
KEPT = {"done", "failure", "node_ip", "pid", "training_iteration", "trial_id"}


class _Unpickled:
    """Ray pickles its state now and then, for a restore that is never used: the driver is no part of that."""

    def __reduce__(self) -> Any:
        return object, ()


class DriverSearcher(_Unpickled, Searcher):
    """Asks the driver for the next attempt; a configuration that is tried again is a new trial for Ray."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(metric="training_iteration", mode="max")  # Ray wants one; nothing reads it
        self.driver = driver

    def suggest(self, trial_id: str) -> Any:
        attempt = self.driver.next_attempt(trial_id)
        if attempt is not None:
            return {"attempt": dataclasses.asdict(attempt)}
        # While others run, one of them may fail and be tried again: only then is nothing left.
        return None if self.driver.running and not self.driver.stop_reason() else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if not error:
            failure = (result or {}).get("failure")
            self.driver.gone(trial_id, Failure(*failure) if failure else None)

    # The ledger is the only record: Ray is not to pickle anything of ours.

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None: ...


class DriverScheduler(_Unpickled, FIFOScheduler):
    """First come, first served; stops what the driver has pruned."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self.driver = driver

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        goes_on = self.driver.receive(result.get("records", [])) and self.driver.stop_reason() is None
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP


class DriverStopper(_Unpickled, Stopper):
    """Ends the session when the driver says so: after the epochs that are under way, on a signal at once.

    Ray gives what still runs then ten seconds.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.training = False  # whether a trial has a process

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.driver.stop_reason() is not None and (self.driver.at_once or not self.training)


class DriverCallback(_Unpickled, Callback):
    """The last records of a trial, failures, and a beat on every turn of Ray's loop."""

    def __init__(self, driver: Driver, stopper: DriverStopper, beat: Callable[[], None]) -> None:
        self.driver, self.stopper, self.beat = driver, stopper, beat

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.beat()
        if self.driver.stop_reason() is not None:
            self.stopper.training = any(trial.status == Trial.RUNNING for trial in trials)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if result.get("done"):
            self.driver.receive(result.get("records", []))  # with what ends a trial Ray goes to no scheduler
        # Ray keeps every trial's last result, and three means of each number in it, until the sweep ends.
        for key in result.keys() - KEPT:
            del result[key]

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.driver.gone(trial.trial_id, of_death(_error_of(trial), self.driver.hung(trial.trial_id)))


class KilledForMemory(RayActorError, OutOfMemoryError):
    """Ray's monitor ended a trial because its node ran out of memory."""

    def __init__(self, message: str) -> None:
        RayActorError.__init__(self, error_msg=message)


class MemoryAwareActors(RayActorManager):
    """Tune takes Ray's OutOfMemoryError for a fault of Tune's own and ends all trials: here it is the end of an actor."""

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        super()._actor_task_failed(tracked_actor_task, _as_actor_error(exception))

    def _actor_start_failed(self, tracked_actor: Any, exception: Exception) -> None:
        super()._actor_start_failed(tracked_actor, _as_actor_error(exception))


def _as_actor_error(exception: Exception) -> Exception:
    return KilledForMemory(str(exception)) if isinstance(exception, OutOfMemoryError) else exception


def use_memory_aware_actors() -> None:
    """For the Tuners of this process; Tune has no option for it."""
    tune_controller.RayActorManager = MemoryAwareActors


def _error_of(trial: Any) -> Any:
    """What ended a trial. Ray's own accessor looks into its storage, where the driver's file arrives only later."""
    from ray import cloudpickle

    try:
        with open(trial.pickled_error_file, "rb") as f:  # written by this process just now
            return cloudpickle.load(f)
    except (OSError, TypeError, AttributeError, ImportError):
        return trial.get_error()
