"""Measure the cost of networks: parameters, multiply-adds and wall-clock time up to each exit.

None depends on the values of the weights, so networks are built from their structure. Networks are timed in turn, so that
a phase in which the machine is slow affects all of them.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from leebert.config import TrainConfig
from leebert.exits import CRITERIA
from leebert.exits.replay import make_criterion
from leebert.latency import machine, time_exits
from leebert.operations import multiply_adds
from leebert.operations import parameters as count
from leebert.runtime import Runtime, limited_threads
from tune.reproduce.results import Costs

log = logging.getLogger(__name__)

#: Samples that are timed, spread over the split.
ROWS = 40


def model_of(problem: Any, config: TrainConfig, structure: str) -> Any:
    """Build a network with arbitrary weights.

    Args:
        problem: The prepared problem, which makes unreduced models.
        config: The training configuration.
        structure: What the network is reduced to, as JSON; empty for the unreduced one.
    """
    model = problem.model(config)
    if not structure:
        return model
    described = copy.deepcopy(model.config)
    described.structure = json.loads(structure)
    return type(model)(described)


def measure(
    problem: Any,
    config: TrainConfig,
    split: str,
    structures: Mapping[str, tuple[int, frozenset[str]]],
    device: str,
) -> Costs:
    """Measure networks, with times of :func:`leebert.latency.time_exits` at batch size 1 on one thread.

    Args:
        problem: The prepared problem.
        config: The training configuration.
        split: The split whose samples are timed.
        structures: By structure, the number of exits and the exit criteria to time.
        device: auto, cpu, cuda or cuda:N.

    Returns:
        The costs; a network whose number of exits differs is omitted.
    """
    runtime = Runtime.of(config.precision, device)
    rows = problem.split(split)
    index = np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(int)
    batches = [rows.collate([i]) for i in index]
    length = round(float(np.mean(np.asarray(rows.lengths)[index])))
    typical = batches[int(np.argmin(np.abs(np.asarray(rows.lengths)[index] - length)))]
    classes = len(problem.label_names)
    parameters, operations, timed = {}, {}, {}
    for structure, (exits, criteria) in structures.items():
        model = model_of(problem, config, structure).eval().to(runtime.device)
        if model.num_exits != exits:
            log.warning(
                f"no costs of the network {structure or 'unreduced'}: it has {model.num_exits} exits, not {exits}"
            )
            continue
        parameters[structure] = count(model).total
        operations[structure] = [float(n) for n in multiply_adds(model, typical)]
        if hasattr(model, "advance"):  # inference by layers needs it
            for name in sorted(criteria):
                # Any threshold will do, since timing lets no sample exit.
                row = CRITERIA[name]
                threshold = row.bounds(exits, classes)[0] if row.has_threshold else None
                timed[structure, name] = model, make_criterion(name, threshold, num_exits=exits, num_classes=classes)
    seconds: dict[str, dict[str, list[float]]] = {}
    with limited_threads(1):
        times = time_exits(timed, batches, runtime)
        for (structure, name), per_exit in times.seconds.items():
            seconds.setdefault(structure, {})[name] = per_exit.tolist()
        described = machine(runtime)
    return Costs(parameters, operations, seconds, described, times.share, times.apart)
