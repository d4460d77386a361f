"""A task of images for training: the counterpart of :class:`leebert.problem.TextProblem`."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from leebert.config import ExitConfig, TrainConfig
from leebert.problem import Splits
from leebert.record import Rows


@dataclasses.dataclass(frozen=True)
class ImageProblem:
    """Image classification with a new residual network; `pixels` is a file made by :mod:`leebert.images.arrays`.

    splits: the same for evaluation splits, by name, where any are to be evaluated.
    """

    pixels: str
    backbone: str
    label_names: tuple[str, ...]
    metric: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    exits: ExitConfig = dataclasses.field(default_factory=ExitConfig)
    splits: Splits = ()

    def rows(self) -> Rows:
        return _rows(self.pixels)

    def split(self, name: str) -> Rows:
        return _rows(dict(self.splits)[name])

    def model(self, config: TrainConfig) -> Any:
        from leebert.images.resnet import build_resnet

        return build_resnet(
            self.backbone, self.label_names, mean=self.mean, std=self.std, train=config, exits=self.exits
        )


@functools.lru_cache(maxsize=4)
def _rows(path: str) -> Rows:
    from leebert.images.arrays import ImageRows

    return ImageRows.open(path)
