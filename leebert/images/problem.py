"""The training problem of an image task, as :class:`leebert.problem.TextProblem` is of a text task."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from leebert.config import ExitConfig, TrainConfig
from leebert.problem import Splits
from leebert.record import SampleSet


@dataclasses.dataclass(frozen=True)
class ImageProblem:
    """Image classification with a residual network trained from scratch.

    Attributes:
        pixels: File of the training split (:mod:`leebert.images.arrays`).
        backbone: Name of the network.
        label_names: K class names in the order of their ids.
        metric: Name of the metric.
        mean: Mean of each colour, as a fraction of the brightest value.
        std: Standard deviation of each colour.
        exits: Exit criterion of the saved model.
        splits: Files of the evaluation splits, by name.
    """

    pixels: str
    backbone: str
    label_names: tuple[str, ...]
    metric: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    exits: ExitConfig = dataclasses.field(default_factory=ExitConfig)
    splits: Splits = ()

    def rows(self) -> SampleSet:
        return _rows(self.pixels)

    def split(self, name: str) -> SampleSet:
        return _rows(dict(self.splits)[name])

    def model(self, config: TrainConfig) -> Any:
        from leebert.images.resnet import build_resnet

        return build_resnet(
            self.backbone, self.label_names, mean=self.mean, std=self.std, train=config, exits=self.exits
        )


@functools.lru_cache(maxsize=4)
def _rows(path: str) -> SampleSet:
    from leebert.images.arrays import ImageRows

    return ImageRows.open(path)
