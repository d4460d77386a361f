"""Sweeps whose configurations are trained in this process, one after the other, instead of in Ray's workers.

`python tests/in_process.py sweep ...` is `leebert-tune sweep ...` so, in a process that a test may stop or kill.

Every record, decision and file is a real sweep's. A Ray session takes about ten seconds of two processors, most of it for
importing PyTorch and Ray in new processes: tests of what a sweep leaves, rather than of where it trains, do without.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from leebert.errors import LeebertError
from tune.running.crossval import run_attempt
from tune.running.driver import Driver, EndStatus
from tune.running.failures import of_exception
from tune.running.session import signals


def run_session(
    study: Any,
    driver: Driver,
    *,
    beat: Callable[[], None],
    before_end: Callable[[], None] = lambda: None,
    **unused: Any,
) -> EndStatus:
    """Take the place of :func:`tune.running.session.run_session`."""
    error: str | None = None
    with signals(driver):
        try:
            while (attempt := driver.next_attempt("in process")) is not None:
                driver.trial_ended("in process", _failure(study, driver, attempt, beat))
        except LeebertError as e:
            error = str(e)
            raise
        finally:
            before_end()
            status = driver.finish(error)
    return status


def _failure(study: Any, driver: Driver, attempt: Any, beat: Callable[[], None]) -> Any:
    """Train an attempt until its end, or until the driver stops it; what training failed by, if it did."""
    with contextlib.closing(run_attempt(study, attempt)) as reports:
        while True:
            try:
                records = next(reports, None)
            except Exception as error:
                if (failure := of_exception(error)) is None:
                    raise
                return failure
            if records is None:
                return None
            beat()
            if not driver.receive(records) or driver.stopping.reason():
                return None


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """Sweeps that begin or resume in this context train in this process; Ray isn't started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tune.running.sweep.start_ray", lambda address: None)
        patch.setattr("tune.running.sweep.check_resources", lambda cpus, gpus: None)
        patch.setattr("tune.running.sweep.run_session", run_session)
        yield


if __name__ == "__main__":
    from leebert import console
    from tune import cli

    with without_ray():
        console.run(cli.app, timestamps=True)
