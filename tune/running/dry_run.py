"""Estimate the runs and costs of a sweep from a few timed steps; train nothing and write only a temporary token cache."""

from __future__ import annotations

import dataclasses
import itertools
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from leebert.console import sentence
from leebert.methods import UNIT, mean_cost, most_epochs
from tune.analysis.labels import searched_name
from tune.analysis.power import DIFFERENCE, StatedVariances, power_for
from tune.analysis.progress import searched
from tune.analysis.stats import USEFUL
from tune.analysis.wording import power_lines
from tune.machines.footprint import estimate_for_space
from tune.running.omega_reach import still_rates
from tune.space import SweepSpec
from tune.space.spec import anchored

#: Steps that are timed per batch size, and steps before them that are not.
TIMED, WARM = 4, 2

#: Configurations that are printed.
SHOWN = 12


def plan(
    spec: SweepSpec,
    device: str = "auto",
    difference: float = DIFFERENCE,
    variances: StatedVariances | None = None,
) -> dict[str, Any]:
    """Estimate a sweep: configurations, cells, θ updates, hours, memory and disk.

    Args:
        spec: The search space.
        device: Where steps are timed; auto takes this machine's GPU if trials request one and it has one, else the CPU.
        difference: The difference between two methods that the sweep should detect, a fraction.
        variances: The variances of single runs' differences; None: unknown.

    Returns:
        The plan, JSON-ready; `timed_on` is the device, `memory_bytes` and `disk_bytes` are bytes.
    """
    import torch

    from leebert.console import quiet_transformers
    from tune.running.prepare import prepare

    quiet_transformers()
    spec = anchored(spec)
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare(spec, Path(scratch))
        rows, classes = prepared.facts["rows"], len(prepared.facts["label_names"])
        if device == "auto":
            device = "cuda" if spec.resources.gpus and torch.cuda.is_available() else "cpu"
        study = prepared.study(Path(scratch), device)
        listed = list(itertools.islice(_configurations(spec), spec.planned)) if spec.planned else []
        sizes = sorted({study.train_config(v, 0).batch_size for v in listed} or {study.train_config({}, 0).batch_size})
        seconds_per_update = {size: _time_updates(study, size) for size in sizes}
        seconds_per_row, parameters = _time_evaluation(study)
    largest, memory = estimate_for_space(spec, device)
    held_out = rows / spec.folds if spec.folds > 1 else rows / 10
    concurrent = _concurrent(spec)
    busy = 0.0
    for values in listed:
        config = study.train_config(values, 0)
        busy += spec.cell_updates(values, rows) * seconds_per_update[config.batch_size] * mean_cost(config)
        busy += most_epochs(config) * held_out * seconds_per_row
    cells = len(spec.cells())
    checkpoint = 12 * parameters  # θ and Adam's two moments, float32
    return {
        "task": spec.task_name,
        "rows": rows,
        "configurations": spec.planned,
        "first": [searched_name(v, searched(spec)) for v in listed[:SHOWN]],
        "cells": spec.planned * cells if spec.planned else None,
        "folds": spec.folds,
        "seeds": list(spec.seeds),
        "power": power_in_words(spec, difference, variances, rows),
        "theta_updates": spec.theta_updates(rows) if spec.planned else None,
        "still_weights": [{**dataclasses.asdict(r), "warning": r.in_words()} for r in still_rates(spec, rows, classes)],
        "timed_on": device,
        "seconds_per_update": {str(k): round(v, 4) for k, v in seconds_per_update.items()},
        "concurrent_trials": concurrent,
        "estimated_hours": round(busy * cells / concurrent / 3600, 3) if listed else None,
        "memory_bytes": memory.total,
        "largest": searched_name(largest, searched(spec)),
        "disk_bytes": int(2 * checkpoint * concurrent + (spec.planned or 0) * len(spec.seeds) * rows * 64),
    }


def power_in_words(
    spec: SweepSpec, difference: float = DIFFERENCE, variances: StatedVariances | None = None, samples: int = 0
) -> list[str]:
    """Return what a sweep's folds and seeds can detect when two methods are compared.

    Args:
        spec: The search space.
        difference: The difference that the sweep should detect, a fraction.
        variances: The variances of single runs' differences; None: unknown, and differences are stated in units of their
            standard deviation.
        samples: The number of training samples; 0: unknown.

    Returns:
        One line each.
    """
    runs, ratio = len(spec.cells()), None if spec.folds > 1 else 1 / 9
    stated = variances or StatedVariances(1.0)
    spread = stated.on(spec.folds, samples)
    power = power_for(spread, spec.folds, difference, runs=runs, test_train_ratio=ratio, std=stated.std)
    unknown = spec.folds == 1 and not spread.sampling
    one_split = ["the choice of the validation samples of the one split adds to this"] if unknown else []
    if variances is not None:
        return [*power_lines(power), *one_split]
    if power.detectable is None:
        few = "2 folds" if spec.folds == 2 else f"{runs} run{'s' if runs > 1 else ''} of each configuration"
        return [f"{few} will be too few for an interval (at least {USEFUL} runs, on 3 folds or one split)"]
    return [
        f"{runs} runs of each configuration detect differences of {power.detectable:.1f} standard deviations of single runs' "
        f"differences (80 % power{', if seeds of a fold agree' if spec.folds > 1 else ''}); state the standard deviation by "
        "--std POINTS or --std-from SWEEP",
        *one_split,
    ]


def _configurations(spec: SweepSpec) -> Any:
    """Yield the configurations of the grid, or as many random ones as the searcher will suggest."""
    from tune.searchers import make_searcher
    from tune.space import config_id
    from tune.store.history import Configuration

    if spec.searcher.row.lists:
        yield from spec.configurations()
        return
    searcher = make_searcher(spec.model_copy(update={"searcher": spec.searcher.model_copy(update={"name": "random"})}))
    history: list[Configuration] = []
    while (values := searcher.suggest(tuple(history))) is not None:
        history.append(Configuration(config_id(values), values))
        yield values


def _time_updates(study: Any, batch_size: int) -> float:
    """Return the median seconds per update of θ at a batch size, timed on training samples."""
    import torch

    from leebert.data.batches import RowSubset, updates_per_epoch
    from leebert.runtime import Runtime, limited_threads
    from leebert.train import train_epochs

    config = study.train_config(
        {"algorithm": UNIT, "batch_size": batch_size, "max_epochs": 1, "finetune_first": False}, 0
    )
    rows = study.problem.rows()
    part = RowSubset(rows, np.random.default_rng(0).permutation(len(rows)))
    times: list[float] = []
    torch.manual_seed(0)
    with limited_threads(study.threads):
        run = train_epochs(
            study.problem.model(config), part, config, runtime=Runtime.of(config.precision, study.device),
            updates=min(WARM + TIMED, updates_per_epoch(len(part), batch_size)), on_step=lambda step: times.append(time.perf_counter()),
        )  # fmt: skip
        list(run)
    laps = np.diff(times)
    return float(np.median(laps[min(WARM, len(laps) - 1) :])) if len(laps) else 0.0


def _time_evaluation(study: Any) -> tuple[float, int]:
    """Return the seconds per evaluated sample, and the model's number of parameters."""
    from leebert.data.batches import RowSubset
    from leebert.evaluate import record_all
    from leebert.runtime import Runtime, limited_threads

    config = study.train_config({}, 0)
    runtime = Runtime.of(config.precision, study.device)
    model = study.problem.model(config).to(runtime.device)
    rows = study.problem.rows()
    part = RowSubset(rows, np.arange(min(len(rows), 2 * config.eval_batch_size)))
    with limited_threads(study.threads):
        started = time.perf_counter()
        record_all(model, part, runtime, config.eval_batch_size)
    return (time.perf_counter() - started) / len(part), sum(p.numel() for p in model.parameters())


def _concurrent(spec: SweepSpec) -> int:
    """Return how many trials run at once on this machine."""
    most = max(1, int((os.cpu_count() or 1) / spec.resources.cpus))
    if spec.resources.gpus:
        import torch

        most = max(1, int(torch.cuda.device_count() / spec.resources.gpus))
    return min(most, spec.resources.concurrent or most)


def print_plan(path: str, plan: dict[str, Any]) -> None:
    """Print a plan of :func:`plan` on stdout; `path` is the space's file."""
    count = plan["configurations"]
    _line(
        f"{path}: {plan['task']}, {plan['rows']} training samples, {plan['folds']} fold(s), {len(plan['seeds'])} seed(s)"
    )
    _line(f"configurations  {count or 'as many as the budget allows'}")
    for line in plan["first"]:
        _line(f"                {line}")
    if count and count > len(plan["first"]):
        _line(f"                and {count - len(plan['first'])} more")
    _line(f"runs            {plan['cells'] or '?'} (one seed on one fold each)")
    _line(
        f"θ updates       {plan['theta_updates'] if plan['theta_updates'] is not None else '?'} (at most; runs may stop early)"
    )
    rates = ", ".join(f"{v:.3f} s at batch {k}" for k, v in plan["seconds_per_update"].items())
    _line(f"one update      {rates} (timed here, on {plan['timed_on']})")
    if plan["estimated_hours"] is not None:
        _line(
            f"time            about {plan['estimated_hours']:.2f} h, {plan['concurrent_trials']} trial(s) at a time here (an estimate)"
        )
    _line(
        f"memory          about {plan['memory_bytes'] / 1e9:.1f} GB (an estimate) for the largest configuration:\n"
        f"                {plan['largest']}"
    )
    _line(f"disk            about {plan['disk_bytes'] / 1e9:.2f} GB at most")
    first, *further = plan["power"]
    _line(f"power           {first}")
    for line in further:
        _line(f"                {line}")
    for one in plan["still_weights"]:
        sentence(f"warning: {one['warning']}")


def _line(text: str) -> None:
    """Print a line of a plan; on a terminal, what follows the first line stands below the values."""
    sentence(text, 0 if text.startswith(" ") else 16)
