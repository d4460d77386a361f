"""Wall-clock time of a sweep's networks on this machine, measured once per network.

Times do not depend on the values of the weights, so networks are built from their structure. They are timed in their exported
form where the packages of `leebert export` are installed, else in PyTorch, on the sweep's samples if these are still tokenised
on this machine.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leebert import live
from leebert.console import EXPORT_PACKAGES, missing_packages
from leebert.errors import LeebertError
from leebert.milliseconds import ExitMilliseconds
from tune.analysis.sweeps import LoadedSweep
from tune.store.history import Configuration

log = logging.getLogger(__name__)


def times_of(
    configurations: Mapping[str, tuple[LoadedSweep, Configuration]], criterion: str, patience: int | None
) -> dict[str, ExitMilliseconds]:
    """Measure the time up to each exit of configurations' networks, at batch size 1 on one thread.

    Args:
        configurations: By any key, a configuration and its sweep.
        criterion: The exit criterion whose decisions are timed.
        patience: Its second parameter; None: the default.

    Returns:
        The times by key; equal networks share one measurement.

    Raises:
        BackboneError: The configuration of a backbone cannot be read.
    """
    networks: dict[str, Any] = {}
    times: dict[tuple[str, str], ExitMilliseconds] = {}
    by_key: dict[str, ExitMilliseconds] = {}
    for key, (sweep, configuration) in configurations.items():
        training = sweep.spec.train_config(configuration.values, sweep.spec.seeds[0])
        shape = (sweep.name, _structure(sweep, training, networks))
        if shape not in times:
            live.phase(f"timing network {len(times) + 1}")
            times[shape] = _measured(sweep, training, criterion, patience)
        by_key[key] = times[shape]
    for one in {one.measured: one for one in times.values()}.values():
        slow = "; other processes disturbed the measurement" if one.disturbed else ""
        log.info(f"milliseconds: at batch size 1 in {one.measured}{slow}")
    return by_key


def _structure(sweep: LoadedSweep, training: Any, networks: dict[str, Any]) -> str:
    """Describe what a method does to the shape of a sweep's network."""
    from leebert.stages import method

    if sweep.name not in networks:
        import torch

        with torch.device("meta"):
            networks[sweep.name] = _footprint(sweep).build(training).num_exits
    return repr([stage.transform for stage in method(training, networks[sweep.name]) if stage.transform])


def _footprint(sweep: LoadedSweep) -> Any:
    from leebert.data.tasks import any_task
    from leebert.kinds import kind_of

    task = any_task(sweep.spec.task)
    return kind_of(task).footprint(task, sweep.spec.model)


def _measured(sweep: LoadedSweep, training: Any, name: str, patience: int | None) -> ExitMilliseconds:
    """Build a configuration's network with arbitrary weights, and time it."""
    footprint = _footprint(sweep)
    model = network(footprint, training)
    return network_milliseconds(model, _samples(sweep, footprint), name, patience)


def network(footprint: Any, training: Any) -> Any:
    """Build the network that a method leaves, with arbitrary weights.

    Args:
        footprint: The network before training (:class:`leebert.kinds.kind.Footprint`).
        training: The training run's options.

    Returns:
        The model in evaluation mode.
    """
    from leebert.stages import method

    model = footprint.build(training)
    for stage in method(training, model.num_exits):
        model = stage.shape(model)
    return model.eval()


def network_milliseconds(
    model: Any, samples: Any, criterion: str, patience: int | None, *, int8: str | None = None
) -> ExitMilliseconds:
    """Measure the time up to each exit of a network: in its exported form if its packages are installed, else in PyTorch.

    Args:
        model: The network.
        samples: The samples, of which some are timed.
        criterion: The exit criterion whose decisions are timed.
        patience: Its second parameter; None: the default.
        int8: `dynamic` or `static`: quantised; None: float32.
    """
    from leebert.exits import CRITERIA
    from leebert.exits.replay import make_criterion
    from leebert.latency import exit_milliseconds
    from leebert.runtime import Runtime, limited_threads

    classes = model.config.num_labels
    threshold = CRITERIA[criterion].bounds(model.num_exits, classes)[0]  # timing lets no sample exit
    timed = make_criterion(criterion, threshold, patience, num_exits=model.num_exits, num_classes=classes)
    if not missing_packages(*EXPORT_PACKAGES):
        from leebert.export.network_times import network_times

        try:
            return network_times(model, samples, timed, int8=int8)
        except LeebertError as error:
            log.warning(f"a network can't be exported ({error}), so it is timed in PyTorch")
    with limited_threads(1):
        return exit_milliseconds(model, samples, timed, Runtime.of("fp32", "cpu"))


def _samples(sweep: LoadedSweep, footprint: Any) -> Any:
    """The sweep's tokenised samples; without their file, one text of the maximum length."""
    from leebert.data.tasks import any_task
    from leebert.kinds import kind_of

    file = str(sweep.manifest.get("tokens", ""))
    if file and Path(file).is_file():
        task = any_task(sweep.spec.task)
        try:
            return kind_of(task).problem(task, sweep.spec.model, file).rows()
        except (LeebertError, OSError) as error:
            log.warning(f"the tokenised samples can't be read ({error}), so texts of the maximum length are timed")
    return _OneSample(footprint)


class _OneSample:
    """One sample of the largest size (:class:`leebert.record.SampleSet`)."""

    def __init__(self, footprint: Any) -> None:
        self.footprint = footprint
        self.lengths = [footprint.length]

    def __len__(self) -> int:
        return 1

    def collate(self, indices: Any) -> Any:
        return self.footprint.batch(len(indices), self.footprint.length)
