"""One session of a sweep: Ray up, trials run as the driver decides, the end recorded."""

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
    """Connect to a cluster, or start Ray on this machine. Does nothing where Ray is up already."""
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        # Without an address and outside of a job Ray would join whatever cluster was started last on this machine.
        if where := address or os.environ.get("RAY_ADDRESS"):
            ray.init(address=where, **options)
        else:
            ray.init(address="local", include_dashboard=False, **options)
    except Exception as error:  # where its processes take too long to come up, Ray raises no class of its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        # Without a token Ray says so by a class, with a wrong one only by the text of the cause.
        if isinstance(error, ray.exceptions.AuthenticationError) or "InvalidAuthToken" in str(error.__cause__):
            raise SweepError(
                f"{f'--address {address}' if address else 'Ray'}: the cluster's token is missing or wrong here; it belongs into ~/.ray/auth_token, "
                "with RAY_AUTH_MODE=token in the environment"
            ) from None
        ray.shutdown()
        raise SweepError(
            f"--address {address}: no Ray cluster answers there ({reason})"
            if address
            else f"Ray could not be started on this machine ({reason}); try again when it is less busy, "
            "or give the address of a cluster by --address"
        ) from None


@contextlib.contextmanager
def signals(driver: Driver) -> Iterator[None]:
    """SIGTERM and Ctrl-C ask the driver to stop; a second one ends the process as usual."""

    def ask(number: int, frame: object) -> None:
        driver.interrupted, driver.signal = True, number
        for n, handler in before.items():
            signal.signal(n, handler)

    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    for n in before:
        signal.signal(n, ask)
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
    """Run trials until the driver has no more or stops; Ray must be up. The end is in the ledger when this returns.

    `before_end` is called between the last trial and the record of the end.
    """
    # Ray reads these when the Tuner is built: no pickles of trials, no progress table, one pending trial at a time so
    # that a searcher decides on what is known, and our own handling of signals and of nodes that are taken away (Ray
    # would start the same attempt once more, which knows nothing of the epochs that are done).
    os.environ["RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE"] = "1"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S"] = "0"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "3600"
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
    error: str | None = None
    status: EndStatus | None = None
    with signals(driver), _scratch(study.folder) as scratch:
        stopper = DriverStopper(driver)
        tuner = ray_tune.Tuner(
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
        try:
            tuner.fit()
        except KeyboardInterrupt:
            driver.interrupted, driver.signal = True, signal.SIGINT
        except Exception as e:
            # Whoever has taken over has cleared away Ray's files, and Ray may have missed them first.
            own = _own(e) or _lost(driver)
            error = str(own) if own else f"{type(e).__name__}: {e}"
            raise own or SweepError(f"Ray ended the sweep: {error}") from e
        finally:
            try:
                before_end()
            finally:
                status = driver.finish(error)
    return status


@contextlib.contextmanager
def _scratch(folder: str) -> Iterator[str]:
    """A folder for Ray's own files, which it wants where every node reaches it."""
    try:
        scratch = tempfile.mkdtemp(dir=folder, prefix=".ray-")
    except OSError as error:
        raise StorageError(f"{folder} can't be written: {error.strerror or error}") from None
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # what is left is removed by the next session


def _request(config: Mapping[str, Any], cpus: float, gpus: float) -> Any:
    """What a trial asks Ray for; after memory ran out, a GPU or a node to itself."""
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
    """The same for all trials that ask for the same: Ray takes a millisecond to make one."""
    from ray.tune import PlacementGroupFactory

    return PlacementGroupFactory([{"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}])


def _lost(driver: Driver) -> LeaseError | None:
    try:
        driver.may_decide()
    except LeaseError as error:
        return error
    return None


def _own(error: BaseException | None) -> LeebertError | None:
    """The error of ours that Ray may have wrapped into its own."""
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
    """A function for Ray's loop: tells every few seconds what the driver does, ends one that was taken over, calls `also`."""
    last = -every

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            last = time.monotonic()
            driver.may_decide()
            write(started=driver.started, planned_cells=planned_cells, running=sorted(driver.running.values()))
            also()

    return beat
