"""Time per trial without training: Ray Tune alone against our driver, over 2,000 trials.

A is Ray Tune with a class that reports once, reused actors, two at a time, without file loggers. B is a session of a
sweep (`tune.running.session.run_session`, a grid with one cell per configuration) whose cells report at once without
training: driver and trials write their ledger to the disk, MLflow is off. A and B alternate, each in its own process.
The first 200 trials, in which processes start and import, are not counted.

Targets: B takes at most 1.25 times A's time per trial; the driver's memory grows by less than 60 kB per trial between
trial 500 and the last.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import Result, alternate, parser, ratios, rss, scratch, start

from leebert.train import EpochReport
from tune.running.crossval import Study

WARM, SETTLED = 200, 500  # trials before the clock and the memory are read first
EXITS = 12
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_AUTH_MODE": "disabled",
    "OMP_NUM_THREADS": "1",
}


class Marks:
    """Time and memory of this process after a number of finished trials."""

    def __init__(self) -> None:
        self.taken: dict[int, tuple[float, int]] = {}

    def take(self, ended: int) -> None:
        for mark in (WARM, SETTLED):
            if ended >= mark:
                self.taken.setdefault(mark, (time.perf_counter(), rss()))

    def told(self, trials: int) -> dict[str, float]:
        (since, _), (_, settled) = self.taken[WARM], self.taken[SETTLED]
        last, memory = time.perf_counter(), rss()
        return {
            "ms": 1000 * (last - since) / (trials - WARM),
            "kilobytes": (memory - settled) / 1000 / (trials - SETTLED),
        }


def ray_alone(trials: int, folder: Path) -> dict[str, float]:
    """Run A: Ray Tune with an empty class."""
    from ray import tune

    class Nothing(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None: ...

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def step(self) -> dict[str, Any]:
            return {"score": 0.5, "done": True}

    class Counts(tune.Callback):
        ended = 0

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.ended += 1
            marks.take(self.ended)

    marks = Marks()
    results = tune.Tuner(
        Nothing,
        param_space={"lr_theta": tune.loguniform(1e-5, 1e-3)},
        tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=2, reuse_actors=True),
        run_config=tune.RunConfig(
            name="alone",
            storage_path=str(folder),
            callbacks=[Counts()],
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    ).fit()
    if results.num_errors:
        raise SystemExit(f"{results.num_errors} trials failed")
    return marks.told(trials)


class Untrained(Study):
    """Cells that end at once, with the records of a real epoch of 12 exits."""

    def train(self, *cell: Any, **options: Any) -> Iterator[EpochReport]:
        scores = [0.6 + i / 100 for i in range(EXITS)]
        yield EpochReport(
            epoch=0, stage="joint", theta_updates=45, seconds=0.0, train_loss=1.0, score=sum(scores) / EXITS,
            exits={"accuracy": scores, "f1": scores, "score": scores, "loss": scores},
            weights={"ce": scores, "kd": scores}, collapsed=[], best_epoch=0, ended="max_epochs",
            last_stage_updates=45, last_stage_epochs=1,
        )  # fmt: skip


def ours(trials: int, folder: Path) -> dict[str, float]:
    """B: a session of a sweep."""
    from tune.pruners import make_pruner
    from tune.running.driver import Driver
    from tune.running.session import run_session
    from tune.searchers import make_searcher
    from tune.space import config_id, load_space
    from tune.store.ledger import Ledger

    path = folder / "space.yaml"
    rates = [1e-5 * (1 + i) for i in range(trials // 2)]
    path.write_text(
        json.dumps(
            {"task": "mrpc", "backbone": "unused", "algorithms": ["clo-v2", "blo"], "space": {"lr_theta": rates}}
        )
    )
    spec, ledger, marks = load_space(path), Ledger(folder / "ledger"), Marks()
    writer = ledger.driver_writer(1)
    writer.append({"kind": "sweep", "name": "driver", "task": "mrpc"})
    writer.close()
    problem: Any = SimpleNamespace(metric="accuracy")  # nothing else is asked of it
    folds: Any = None
    study = Untrained(str(folder), problem, folds, ((0, 0),), spec.training, 1, "cpu", hang_seconds=600)
    driver = Driver(
        study, ledger, make_searcher(spec), make_pruner(spec), config_id=config_id
    )  # fmt: skip
    run_session(
        study, driver, cpus=1, gpus=0, concurrent=2, beat=lambda: marks.take(len(driver.state.cells))
    )  # fmt: skip
    told = marks.told(trials)
    if sum(c.state == "complete" for c in ledger.read().history()) != trials:
        raise SystemExit("not every trial is in the ledger")
    return told


def one(variant: str, trials: int) -> dict[str, float]:
    """Run one variant in its own process."""
    command = [sys.executable, __file__, "--of", variant, "--trials", str(trials)]
    done = subprocess.run(
        command, env={**os.environ, **ENVIRONMENT}, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {variant}: {told['ms']:.1f} ms, {told['kilobytes']:.0f} kB per trial", flush=True)
    return told


def inside(options: argparse.Namespace) -> None:
    """Run one variant in this process."""
    import ray

    start(options.threads)
    ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with scratch() as folder:
        print(json.dumps({"ray": ray_alone, "ours": ours}[options.of](options.trials, folder)))


def main() -> None:
    made = parser(__doc__, rounds=3)
    made.add_argument("--trials", type=int, default=2000, help="trials of each run (%(default)s)")
    made.add_argument("--of", choices=["ray", "ours"], help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.of:
        inside(options)
        return
    result = Result("driver", options)
    memory: list[float] = []

    def ours_timed(number: int) -> float:
        told = one("ours", options.trials)
        memory.append(told["kilobytes"])
        return told["ms"]

    found = alternate({"ray": lambda number: one("ray", options.trials)["ms"], "ours": ours_timed}, options.rounds)
    result.figure("Ray Tune alone", found["ray"], "ms per trial")
    result.figure("a sweep's driver", found["ours"], "ms per trial")
    result.target("driver / Ray Tune alone", ratios(found["ours"], found["ray"]), 1.25)
    result.target("growth of memory, kB per trial", memory, 60)
    result.end()


if __name__ == "__main__":
    main()
