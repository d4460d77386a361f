"""A sweep of a toy problem in a process of its own, the driver's: `python tests/toy_sweep.py FOLDER SETTINGS`.

Run again on the same folder it goes on, as `leebert-tune resume` does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ahead import ENVIRONMENT
from test_driver import Grid, NoPruner, a_study, name
from toys import ToyProblem

from tune.running.crossval import run_attempt
from tune.running.driver import Driver
from tune.running.session import run_session, start_ray
from tune.space import Budget
from tune.store.ledger import Ledger, SweepState


def start(folder: Path, **settings: Any) -> subprocess.Popen[str]:
    """The sweep in a process of its own. Settings are those of :func:`main`."""
    return subprocess.Popen(
        [sys.executable, __file__, str(folder), json.dumps(settings)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=ENVIRONMENT,
    )  # fmt: skip


def finished(process: subprocess.Popen[str], seconds: float = 240.0) -> str:
    """The status with which the sweep's process ended."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err
    return re.findall(r"^session: (\w+)$", out, re.MULTILINE)[-1]  # Ray, too, says this and that


def toy_driver(folder: Path, problem: Any, number: int = 1, study: dict[str, Any] | None = None, **options: Any) -> Any:
    """A driver with its place in the ledger; `study` changes fields of the study, `training` its options."""
    change = dict(study or {})
    shared = a_study(folder, **{"batch_size": 8, **change.pop("training", {})})
    shared = dataclasses.replace(shared, problem=problem, threads=1, **change)
    ledger = Ledger(folder / "ledger")
    first = {"kind": "sweep"} if number == 1 else {"kind": "resume", "fences": ledger.driver_fences()}
    writer = ledger.driver_writer(number)
    writer.append(first)
    writer.close()
    return Driver(shared, ledger, Grid(), NoPruner(), config_id=name, number=number, **options)


def session(d: Any, concurrent: int | None = 2, beat: Callable[[], None] = lambda: None) -> str:
    """Run a driver's trials on CPUs of the Ray that is up."""
    return run_session(d.study, d, cpus=1, gpus=0, concurrent=concurrent, beat=beat)


def undisturbed(folder: Path, **training: Any) -> dict[Any, Any]:
    """The scores of the same sweep without Ray, one configuration after the other in this process."""
    d = toy_driver(folder, ToyProblem(), study={"training": training})
    while (attempt := d.next_attempt("t")) is not None:
        for records in run_attempt(d.study, attempt):
            d.receive(records)
        d.trial_ended("t")
    assert d.finish() == "finished"
    return scores(d.state)


def scores(state: SweepState) -> dict[Any, Any]:
    """Every score of every epoch, by configuration and cell."""
    return {(c.id, k.seed, k.fold): k.epochs for c in state.history() for k in c.cells}


@contextlib.contextmanager
def by_value() -> Iterator[None]:
    """The toys travel to the workers themselves: they are in no package that those know."""
    import test_driver
    import toy_problems
    import toys
    from ray import cloudpickle

    modules = (test_driver, toys, toy_problems)
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    yield
    for module in modules:
        cloudpickle.unregister_pickle_by_value(module)


def main(
    folder: Path,
    address: str,
    problem: str,
    options: dict[str, Any],
    cpus: float = 1,
    gpus: float = 0,
    concurrent: int | None = None,
    budget: dict[str, Any] | None = None,
    **study: Any,
) -> str:
    """Run one session; `problem` is a class of `toy_problems` with these `options`."""
    import toy_problems

    start_ray(address)
    number = len(list((folder / "ledger" / "driver").glob("*"))) + 1
    d = toy_driver(
        folder, getattr(toy_problems, problem)(**options), number, study, gpus=gpus, budget=Budget(**(budget or {}))
    )
    with by_value():
        return run_session(d.study, d, cpus=cpus, gpus=gpus, concurrent=concurrent, beat=lambda: None)


if __name__ == "__main__":
    print("session:", main(Path(sys.argv[1]), **json.loads(sys.argv[2])), flush=True)
