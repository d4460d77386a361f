"""Estimate the memory of a space's largest configuration from the backbone's config, without weights, data and device."""

from __future__ import annotations

from typing import Any

from tune.space import SweepSpec
from tune.space.values import Range, Scalar, Values


def estimate_for_space(spec: SweepSpec, device: str = "auto") -> tuple[dict[str, Any], Any]:
    """Find the configuration of a space that needs most memory.

    Args:
        spec: The space.
        device: cpu, cuda, or auto: cuda if trials request a GPU. For a GPU on a machine without one, precision `auto` is bf16.

    Returns:
        The configuration and its :class:`leebert.memory.TrainingMemory`, with texts of `max_length` tokens.

    Raises:
        BackboneError, ConfigError: The backbone can't be loaded, or does not suit the task.
    """
    import torch

    from leebert.data.tasks import any_task
    from leebert.kinds import kind_of
    from leebert.memory import estimate

    task = any_task(spec.task)
    kind = kind_of(task)
    kind.check_model(task, spec.model)
    step = kind.footprint(task, spec.model)
    if device == "auto":
        device = "cuda" if spec.resources.gpus else "cpu"
    estimates = []
    for values in _largest(spec):
        config = spec.train_config(values)
        with torch.device("meta"):
            model = step.build(config)
        runtime = _runtime(device, config.precision)
        estimates.append(
            (values, estimate(model, config.batch_size, step.length, config, runtime=runtime, batch=step.batch))
        )
    return max(estimates, key=lambda pair: pair[1].total)


def _largest(spec: SweepSpec) -> list[dict[str, Any]]:
    """Make one configuration per method with the largest batch size; other options hardly affect memory."""
    chosen = {option: _any(values) for option, values in spec.space.items()}
    if "batch_size" in spec.space:
        sizes = spec.space["batch_size"]
        chosen["batch_size"] = sizes.high if isinstance(sizes, Range) else max(int(size) for size in sizes.values)
    return [spec.configuration(algorithm, chosen) for algorithm in spec.algorithms]


def _any(values: Values) -> Scalar:
    return values.low if isinstance(values, Range) else values.values[0]


def _runtime(device: str, precision: Any) -> Any:
    import torch

    from leebert.runtime import Runtime

    if device == "cpu" or torch.cuda.is_available():
        return Runtime.of(precision, device)
    return Runtime(torch.device(device), torch.float32 if precision == "fp32" else torch.bfloat16)
