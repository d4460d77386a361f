"""A training problem: a task with its dataset, metric and model factory, as trainer, folds and sweeps use it."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any, Protocol

from leebert.config import ExitConfig, Pooling, TrainConfig
from leebert.record import SampleSet

#: Files of evaluation splits: name → file.
Splits = tuple[tuple[str, str], ...]


class Problem(Protocol):
    """A task with its dataset, metric and model factory. It must pickle to few bytes, since sweeps send it to every node."""

    @property
    def metric(self) -> str: ...
    @property
    def label_names(self) -> tuple[str, ...]: ...

    def rows(self) -> SampleSet:
        """Return all samples of the training split."""
        ...

    def split(self, name: str) -> SampleSet:
        """Return all samples of an evaluation split, for sweeps prepared with `evaluate`."""
        ...

    def model(self, config: TrainConfig) -> Any:
        """Make a new model with `num_exits` and `record`; its random weights follow torch's global seed."""
        ...


@dataclasses.dataclass(frozen=True)
class TextProblem:
    """Text classification with a pretrained encoder.

    Attributes:
        tokens: File of the training split (:mod:`leebert.data.tokens`).
        backbone: Name of the encoder.
        label_names: K class names in the order of their ids.
        metric: Name of the metric.
        pooling: Pooling before each classifier.
        exits: Exit criterion of the saved model.
        splits: Files of the evaluation splits, by name.
    """

    tokens: str
    backbone: str
    label_names: tuple[str, ...]
    metric: str
    pooling: Pooling = "pooler"
    exits: ExitConfig = dataclasses.field(default_factory=ExitConfig)
    splits: Splits = ()

    def rows(self) -> SampleSet:
        return _rows(self.tokens)

    def split(self, name: str) -> SampleSet:
        return _rows(dict(self.splits)[name])

    def model(self, config: TrainConfig) -> Any:
        from leebert.model import build_model

        # A deep copy of the loaded encoder takes milliseconds, loading it again a second.
        encoder = copy.deepcopy(_encoder(self.backbone))
        return build_model(encoder, self.label_names, pooling=self.pooling, train=config, exits=self.exits)


@functools.lru_cache(maxsize=4)
def _rows(path: str) -> SampleSet:
    from leebert.data.tokens import TokenisedSplit

    return TokenisedSplit.open(path)


@functools.lru_cache(maxsize=1)
def _encoder(backbone: str) -> Any:
    from leebert.backbone import load_encoder

    return load_encoder(backbone)
