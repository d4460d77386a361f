"""One session of a sweep: Ray up, trials run as the driver decides, the end recorded."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from leebert.errors import DeviceError, SweepError
from tune.crossval import Study
from tune.driver import Driver, EndStatus


def start_ray(address: str | None) -> None:
    """Connect to a cluster, or start Ray on this machine. Does nothing where Ray is up already."""
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(address=address, **options) if address else ray.init(include_dashboard=False, **options)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        # Without a token Ray says so by a class, with a wrong one only by the text of the cause.
        if isinstance(error, ray.exceptions.AuthenticationError) or "InvalidAuthToken" in str(error.__cause__):
            raise SweepError(
                f"--address {address}: the cluster's token is missing or wrong here; it belongs into ~/.ray/auth_token, "
                "with RAY_AUTH_MODE=token in the environment"
            ) from None
        raise SweepError(f"--address {address}: no Ray cluster answers there ({str(error).splitlines()[0]})") from None


def check_resources(cpus: float, gpus: float) -> None:
    """DeviceError for a request that no node can meet: Ray would wait for ever."""
    import ray

    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    if not any(n.get("CPU", 0) >= cpus and n.get("GPU", 0) >= gpus for n in nodes):
        have = "; ".join(f"{n.get('CPU', 0):g} CPUs, {n.get('GPU', 0):g} GPUs" for n in nodes)
        raise DeviceError(
            f"a trial asks for {cpus:g} CPUs and {gpus:g} GPUs, which no node has (nodes: {have}); "
            "change resources in the space, or --set resources.gpus=0"
        )


@contextlib.contextmanager
def signals(driver: Driver) -> Iterator[None]:
    """SIGTERM and Ctrl-C ask the driver to stop; a second one ends the process as usual."""

    def ask(number: int, frame: object) -> None:
        driver.interrupted = True
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
    # that a searcher decides on what is known, and our own handling of signals.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S"] = "0"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "3600"
    from ray import tune as ray_tune

    from tune.ray_adapters import DriverCallback, DriverScheduler, DriverSearcher, DriverStopper
    from tune.trial import CellTrial

    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(CellTrial, study=study), {"cpu": cpus, "gpu": gpus} if gpus else {"cpu": cpus}
    )
    error: str | None = None
    status: EndStatus | None = None
    with signals(driver), tempfile.TemporaryDirectory(dir=study.folder, prefix=".ray-") as scratch:
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
                stop=DriverStopper(driver),
                callbacks=[DriverCallback(driver, beat)],
                checkpoint_config=ray_tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except KeyboardInterrupt:
            driver.interrupted = True
        except Exception as e:
            error = f"{type(e).__name__}: {e}"
            raise SweepError(f"Ray ended the sweep: {error}") from e
        finally:
            before_end()
            status = driver.finish(error)
    return status


def beats(
    write: Callable[..., None], driver: Driver, planned_cells: int | None, every: float = 2.0
) -> Callable[[], None]:
    """A function for Ray's loop that writes the driver's beat every few seconds."""
    last = 0.0

    def beat() -> None:
        nonlocal last
        if time.time() - last >= every:
            last = time.time()
            write(started=driver.started, planned_cells=planned_cells, running=sorted(driver.running.values()))

    return beat
