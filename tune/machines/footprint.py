"""The memory of a space's largest configuration, from the backbone's config alone: no weights, no data, no device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from leebert.images.tasks import ImageTask
from tune.space import SweepSpec
from tune.space.values import Range, Scalar, Values

if TYPE_CHECKING:
    from leebert.config import TrainConfig
    from leebert.data.tasks import Task
    from leebert.record import Batch


def estimate_for_space(spec: SweepSpec, device: str = "auto") -> tuple[dict[str, Any], Any]:
    """The configuration of a space that needs most memory, and its :class:`leebert.memory.MemoryEstimate`.

    Texts are taken to be `max_length` long. `device` is cpu or cuda; auto: cuda where trials ask for a GPU. For a GPU on
    a machine without one, precision `auto` is taken to be bf16. Raises BackboneError, ConfigError.
    """
    import torch

    from leebert.data.tasks import any_task
    from leebert.memory import estimate, image_batch, text_batch
    from leebert.recipe import check_model

    task = any_task(spec.task)
    check_model(task, spec.model)
    build: Callable[[TrainConfig], Any]
    batch: Callable[[int, int], Batch]
    if isinstance(task, ImageTask):
        build, length, batch = _network(spec, task), task.size, image_batch
    else:
        build, length, batch = _encoder(spec, task), spec.max_length, text_batch
    if device == "auto":
        device = "cuda" if spec.resources.gpus else "cpu"
    found = []
    for values in _largest(spec):
        config = spec.train_config(values)
        with torch.device("meta"):
            model = build(config)
        runtime = _runtime(device, config.precision)
        found.append((values, estimate(model, config.batch_size, length, config, runtime=runtime, batch=batch)))
    return max(found, key=lambda pair: pair[1].total)


def _encoder(spec: SweepSpec, task: Task) -> Callable[[TrainConfig], Any]:
    """Makes the model of a text task with new weights."""
    from transformers import AutoModel

    from leebert.backbone import load_config
    from leebert.model import build_model

    config = load_config(spec.backbone)
    return lambda train: build_model(AutoModel.from_config(config), task.label_names, pooling=spec.pooling, train=train)


def _network(spec: SweepSpec, task: ImageTask) -> Callable[[TrainConfig], Any]:
    """Makes the model of an image task."""
    from leebert.images.resnet import build_resnet

    return lambda train: build_resnet(spec.backbone, task.label_names, mean=task.mean, std=task.std, train=train)


def _largest(spec: SweepSpec) -> list[dict[str, Any]]:
    """One configuration per algorithm, at the largest batch size; of the other options none costs memory to speak of."""
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
