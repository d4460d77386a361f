"""Time MLflow's part in a sweep: reports of 12 exits (64 values) to a real server with one worker (`mlflow/serve.sh`).

A ledger is written as a trial's process does and fed to a `tune.tracking.tracker.Tracker`: report by report as in a
running sweep, each after the previous one is stored (live), and all at once, as after an outage and in
`rebuild-mlflow` (pending). `put`, the only part that blocks the driver, is timed while reports are pending. MLflow's
share of a trial is the time of a live report / the time of an epoch of MRPC (2 folds of 800 samples, CLO-v2), as if
training paused meanwhile.

Targets: >= 30 pending reports per second; share < 5 %.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import Result, parser, scratch, start
from trial import space

SERVE = Path(__file__).resolve().parent.parent / "mlflow" / "serve.sh"


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """MLflow's server on a free port; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "MLFLOW_PORT": str(port), "PYTHON": sys.executable}
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(
            [str(SERVE), str(folder)], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
                break
            if process.poll() is not None:
                raise RuntimeError((folder / "server.log").read_text()[-2000:])
            time.sleep(0.2)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def write_ledger(folder: Path, configs: int, epochs: int, exits: int) -> Any:
    """Write a sweep's ledger with two cells per configuration."""
    from tune.store.ledger import Ledger

    rng = np.random.default_rng(0)
    ledger = Ledger(folder)
    driver = ledger.driver_writer(1)
    driver.append({"kind": "sweep", "params": {"folds": 2}})

    def values() -> list[float]:
        return rng.random(exits).tolist()

    for number in range(configs):
        config = f"c{number:04d}"
        swept = {"algorithm": "clo-v2", "lr_theta": 1e-4 * (1 + number)}
        driver.append({"kind": "suggest", "config": config, "index": number + 1, "values": swept})
        driver.append({"kind": "grant", "config": config, "attempt": 1, "driver": 1, "fences": {}})
        trial = ledger.attempt_writer(config, "0001-0001")
        for fold in range(2):
            where = {"config": config, "attempt": 1, "seed": 0, "fold": fold}
            for epoch in range(epochs):
                report = {
                    "epoch": epoch, "score": 0.5, "theta_updates": 10 * epoch, "seconds": 1.0, "train_loss": 0.1,
                    "exits": {"score": values(), "loss": values()}, "weights": {"ce": values(), "kd": values()},
                    "collapsed": [], "ended": None,
                }  # fmt: skip
                trial.append({"kind": "epoch", **where, **report})
        trial.close()
    driver.close()
    return ledger


class Live:
    """Forwards each event after the previous one is stored; records the time of reports and of `put`."""

    def __init__(self, tracker: Any) -> None:
        self.tracker, self.reports, self.puts = tracker, list[float](), list[float]()

    def put(self, event: Any) -> None:
        from tune.tracking.events import Epoch

        started = time.perf_counter()
        self.tracker.put(event)
        self.puts.append(time.perf_counter() - started)
        while self.tracker.waiting:
            time.sleep(0.0005)
        if isinstance(event, Epoch):
            self.reports.append(time.perf_counter() - started)


class Timed:
    """Records the time of `put` while all reports are pending."""

    def __init__(self, tracker: Any) -> None:
        self.tracker, self.puts = tracker, list[float]()

    def put(self, event: Any) -> None:
        started = time.perf_counter()
        self.tracker.put(event)
        self.puts.append(time.perf_counter() - started)


def epoch_seconds(folder: Path, device: str) -> float:
    """Return the seconds of an epoch of a small trial: the second of two, after all loading."""
    from tune.running.crossval import Attempt, run_attempt
    from tune.running.prepare import prepare
    from tune.space import config_id, load_space

    small = ["data.subset={rows: 800, seed: 0}", "folds=2", "training.max_epochs=2"]
    prepared = prepare(load_space(space(folder), small), folder / "tokens")
    values = {"algorithm": "clo-v2", "lr_theta": 1e-4}
    attempt = run_attempt(prepared.study(folder / "sweep", device), Attempt(config_id(values), values, 1))
    next(attempt)
    (record, *_) = next(attempt)
    attempt.close()
    return float(record["seconds"])


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--configs", type=int, default=4, help="configurations of two cells (%(default)s)")
    made.add_argument("--epochs", type=int, default=25, help="epochs of a cell (%(default)s)")
    made.add_argument("--exits", type=int, default=12, help="exits (%(default)s)")
    options = made.parse_args()
    start(options.threads)
    from tune.tracking.feed import replay
    from tune.tracking.tracker import Tracker

    result = Result("feed", options)
    live: list[float] = []
    rebuilt: list[float] = []
    puts: list[float] = []
    with scratch() as folder, server(folder) as url:
        ledger = write_ledger(folder / "ledger", options.configs, options.epochs, options.exits)
        for number in range(options.rounds):
            tracker = Tracker(url, "benchmark", f"live {number}", "mrpc")
            tracker.check()
            listener = Live(tracker)
            replay(ledger, listener)
            live.append(sum(listener.reports) / len(listener.reports))
            assert tracker.close() == 0

            tracker = Tracker(url, "benchmark", f"rebuild {number}", "mrpc")
            tracker.check()
            started = time.perf_counter()
            timed = Timed(tracker)
            state = replay(ledger, timed)
            assert tracker.close() == 0
            rebuilt.append(state.fold_epochs / (time.perf_counter() - started))
            puts.append(1e6 * float(np.median(timed.puts)))
        result.figure("live, one after the other, ms a report", [1000 * s for s in live])
        result.target("what waited, reports a second", rebuilt, 30, least=True)
        result.figure("put, of the driver's time", puts, "µs")
        epoch = epoch_seconds(folder, options.device)
        result.figure("an epoch of the trial", epoch, "s")
        result.target("MLflow's share of a trial, per cent", [100 * s / epoch for s in live], 5)
    result.end()


if __name__ == "__main__":
    main()
