"""Start-up time of a trial in a process that has already run one, like Ray's reused actors.

Timed is the span from the creation of an attempt (`tune.running.crossval.run_attempt` on the real MRPC, batch size
16, CLO-v2) to the end of its first step of θ: ledger writer, fresh model, optimisers, the plan of the epoch, one
batch and the step. The first attempt, which also loads encoder and samples, is printed for comparison. Ray's share
and MLflow, which the driver feeds, are not included.

Target: < 1.5 s after the first attempt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import BACKBONE, BATCH, Result, glue, now, parser, scratch, start


class _FirstStep(Exception):
    """Raised after the first step to end the attempt."""


def space(folder: Path) -> Path:
    """Write a search space of MRPC to a file."""
    described = {
        "task": "mrpc",
        "backbone": BACKBONE,
        "pooling": "mean",
        "algorithms": ["clo-v2"],
        "space": {"lr_theta": [1e-4, 2e-4]},
        "training": {"batch_size": BATCH},
        "data": {"dir": str(glue())},
        "folds": 5,
    }
    path = folder / "mrpc.yaml"
    path.write_text(json.dumps(described))  # JSON is YAML
    return path


def hooked(train_epochs: Callable[..., Any], stamps: list[float], device: str) -> Callable[..., Any]:
    """`train_epochs` that records when it is called, with the model built, and when the first step ends."""

    def after_first(step: int) -> None:
        stamps.append(now(device))
        raise _FirstStep

    def run(*args: Any, **options: Any) -> Iterator[Any]:
        stamps.append(now(device))
        return iter(train_epochs(*args, **options, on_step=after_first))

    return run


def main() -> None:
    options = parser(__doc__).parse_args()
    start(options.threads)
    import dataclasses

    from tune.running import crossval
    from tune.running.crossval import Attempt, run_attempt
    from tune.running.prepare import prepare
    from tune.space import config_id, load_space

    result = Result("trial", options)
    stamps: list[float] = []
    crossval.train_epochs = hooked(crossval.train_epochs, stamps, options.device)
    with scratch() as folder:
        prepared = prepare(load_space(space(folder)), folder / "tokens")
        study = dataclasses.replace(prepared.study(folder / "sweep", options.device), threads=options.threads)
        model_ready, first_step = [], []
        for number in range(options.rounds + 1):
            values = {"algorithm": "clo-v2", "lr_theta": 1e-4 * (1 + number)}
            stamps.clear()
            started = now(options.device)
            try:
                next(run_attempt(study, Attempt(config_id(values), values, 1)))
            except _FirstStep:
                model_ready.append(stamps[0] - started)
                first_step.append(stamps[1] - started)
    result.figure("first attempt: model ready", model_ready[0], "s")
    result.figure("first attempt: first step done", first_step[0], "s")
    result.figure("later attempts: model ready", model_ready[1:], "s")
    result.target("later attempts: first step done, s", first_step[1:], 1.5)
    result.end()


if __name__ == "__main__":
    main()
