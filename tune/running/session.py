"""Run one session of a sweep: start Ray, run the trials that the driver grants, record how the session ended."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from leebert.errors import LeaseError, LeebertError, StorageError, SweepError
from tune.running.crossval import Study
from tune.running.driver import Driver, EndStatus


def start_ray(address: str | None) -> None:
    """Connect to a Ray cluster, or start Ray on this machine; do nothing if Ray is running already.

    Args:
        address: The cluster's address (`auto`, HOST:PORT); None for RAY_ADDRESS, else this machine.

    Raises:
        SweepError: No cluster responds, its token is missing or wrong, or Ray does not start.
    """
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        # Without an explicit address Ray would join the cluster that was last started on this machine.
        if cluster := address or os.environ.get("RAY_ADDRESS"):
            ray.init(address=cluster, **options)
        else:
            ray.init(address="local", include_dashboard=False, **options)
    except Exception as error:  # Ray has no exception class for processes that start too slowly
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        # A missing token has an exception class, a wrong one only the text of the cause.
        if isinstance(error, ray.exceptions.AuthenticationError) or "InvalidAuthToken" in str(error.__cause__):
            raise SweepError(
                f"{f'--address {address}' if address else 'Ray'}: the cluster's token is missing or wrong; write it to "
                "~/.ray/auth_token and set RAY_AUTH_MODE=token"
            ) from None
        ray.shutdown()
        raise SweepError(
            f"--address {address}: no Ray cluster responds at this address ({reason}); check it, or start one with ray start"
            if address
            else f"Ray could not be started on this machine ({reason}); try again when it is less busy, "
            "or give the address of a cluster by --address"
        ) from None


@contextlib.contextmanager
def signals(driver: Driver) -> Iterator[None]:
    """Make SIGTERM and Ctrl-C stop the driver within the context; a second signal ends the process as usual."""

    def interrupt(number: int, frame: object) -> None:
        driver.stopping.signal = number
        for n, handler in before.items():
            signal.signal(n, handler)

    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    for n in before:
        signal.signal(n, interrupt)
    try:
        yield
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def run_session(
    study: Study,
    driver: Driver,
    *,
    cpus: float,
    gpus: float,
    concurrent: int | None,
    beat: Callable[[], None],
    before_end: Callable[[], None] = lambda: None,
) -> EndStatus:
    """Run trials until the driver grants no further ones or stops; Ray must be running.

    Args:
        study: What all trials of the sweep share.
        driver: The sweep's driver; its ledger has the end of the session when this returns.
        cpus: CPUs of one trial.
        gpus: GPUs of one trial; below 1, trials share a GPU.
        concurrent: The most trials at once; None for as many as fit.
        beat: Called on every turn of Ray's loop.
        before_end: Called between the last trial and the record of the end.

    Returns:
        How the session ended.

    Raises:
        LeebertError: The driver's own error, where Ray passed one on.
        SweepError: Ray itself failed.
    """
    _configure_ray_tune()
    error: str | None = None
    status: EndStatus | None = None
    with signals(driver), _scratch(study.folder) as scratch:
        tuner = _tuner(study, driver, cpus, gpus, concurrent, beat, scratch)
        try:
            tuner.fit()
        except KeyboardInterrupt:
            driver.stopping.signal = signal.SIGINT
        except Exception as e:
            # A driver that took over has removed Ray's files, and Ray may have noticed first.
            cause = _leebert_error(e) or _lost(driver)
            error = str(cause) if cause else f"{type(e).__name__}: {e}"
            raise cause or SweepError(f"Ray ended the sweep: {error}") from e
        finally:
            try:
                before_end()
            finally:
                status = driver.finish(error)
    return status


def _configure_ray_tune() -> None:
    """Set the options that Ray Tune reads from the environment when a Tuner is built."""
    # No pickles of trials and no progress table. One pending trial at a time, so that the searcher decides on current
    # results. Signals and preempted nodes are ours: Ray would restart the same attempt, which ignores the epochs that
    # are already in the ledger.
    os.environ["RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE"] = "1"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S"] = "0"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "3600"


def _tuner(
    study: Study,
    driver: Driver,
    cpus: float,
    gpus: float,
    concurrent: int | None,
    beat: Callable[[], None],
    scratch: str,
) -> Any:
    """Make a `ray.tune.Tuner` of the driver, with its own files in `scratch`."""
    from ray import tune as ray_tune

    from tune.running.ray_adapters import (
        DriverCallback,
        DriverScheduler,
        DriverSearcher,
        DriverStopper,
        use_memory_aware_actors,
    )
    from tune.running.trial import CellTrial

    use_memory_aware_actors()
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(CellTrial, study=study), functools.partial(_request, cpus=cpus, gpus=gpus)
    )
    stopper = DriverStopper(driver)
    return ray_tune.Tuner(
        trainable,
        tune_config=ray_tune.TuneConfig(
            search_alg=DriverSearcher(driver),
            scheduler=DriverScheduler(driver),
            num_samples=-1,
            max_concurrent_trials=concurrent,
            reuse_actors=True,
        ),
        run_config=ray_tune.RunConfig(
            name="trials",
            storage_path=scratch,
            stop=stopper,
            callbacks=[DriverCallback(driver, stopper, beat)],
            checkpoint_config=ray_tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            verbose=0,
        ),
    )


@contextlib.contextmanager
def _scratch(folder: str) -> Iterator[str]:
    """Create a temporary folder for Ray's own files in the sweep's folder, which every node reaches."""
    try:
        scratch = tempfile.mkdtemp(dir=folder, prefix=".ray-")
    except OSError as error:
        raise StorageError(
            f"{folder} can't be written: {error.strerror or error}; check its permissions and the disk"
        ) from None
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # the next session removes leftovers


def _request(config: Mapping[str, Any], cpus: float, gpus: float) -> Any:
    """Return the resources that a trial requests of Ray; after it ran out of memory, a whole GPU or node."""
    import ray

    alone = config["attempt"]["placement"]["alone"]
    if alone:
        gpus = float(math.ceil(gpus))
    if alone == "node":
        nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
        cpus = max((n.get("CPU", 0.0) for n in nodes if n.get("GPU", 0) >= gpus), default=cpus)
    return _bundle(cpus, gpus)


@functools.cache
def _bundle(cpus: float, gpus: float) -> Any:
    """Cache the request: Ray takes a millisecond to make one, and most trials request the same."""
    from ray.tune import PlacementGroupFactory

    return PlacementGroupFactory([{"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}])


def _lost(driver: Driver) -> LeaseError | None:
    """Return the error of a lost lease; None if the driver still holds it."""
    try:
        driver.records.may_decide()
    except LeaseError as error:
        return error
    return None


def _leebert_error(error: BaseException | None) -> LeebertError | None:
    """Return the project's error that Ray wrapped into its own; None if there is none."""
    while error is not None and not isinstance(error, LeebertError):
        error = error.__cause__
    return error


def beats(
    write: Callable[..., None],
    driver: Driver,
    planned_cells: int | None,
    also: Callable[[], None] = lambda: None,
    every: float = 2.0,
) -> Callable[[], None]:
    """Make the function that Ray's loop calls on every turn.

    Args:
        write: Writes the driver's status; called with `started`, `planned_cells`, `running` and `queued` configurations.
        driver: The driver; its lease is checked on every beat, and a lost one ends the session.
        planned_cells: How many cells the whole sweep has; None if that is unknown.
        also: Called after the status is written.
        every: Seconds between two beats.

    Returns:
        The function.
    """
    last = -every

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            last = time.monotonic()
            driver.records.may_decide()
            started = set(driver.started_trials())
            running = sorted(config for trial, config in driver.running.items() if trial in started)
            queued = sorted(config for trial, config in driver.running.items() if trial not in started)
            write(started=driver.started, planned_cells=planned_cells, running=running, queued=queued)
            also()

    return beat
