"""The interface of a kind of task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from leebert.config import ExitConfig, ModelConfig, TrainConfig
from leebert.problem import Problem, Splits
from leebert.record import Batch, Rows

#: What shows the progress of an iteration.
Progress = Callable[[Iterable[Any]], Iterable[Any]]


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What an estimate of a training step's memory needs, without weights and data.

    build: makes the model, with new weights. length: tokens of a text, or pixels of an image's side. batch: makes a
    labelled batch of (samples, length).
    """

    build: Callable[[TrainConfig], Any]
    length: int
    batch: Callable[[int, int], Batch]


class PreparedRows(Rows, Protocol):
    """Rows tokenised or decoded into a file, and mapped from it. truncated: how many of them were cut."""

    @property
    def path(self) -> str: ...
    @property
    def truncated(self) -> int: ...


class Kind(Protocol):
    """What differs between tasks of texts and of images.

    name: as messages have it. model_type: of its saved models' config.json. served: whether a service answers with its
    models (:mod:`leebert.serving`). A `tokenizer` is None where the kind has none.
    """

    @property
    def name(self) -> str: ...
    @property
    def model_type(self) -> str: ...
    @property
    def served(self) -> bool: ...

    def grouped(self, task: Any, group_by: Any) -> Any:
        """The task with other groups of samples. Raises ConfigError for groups that it can't have."""
        ...

    def check_model(self, task: Any, model: ModelConfig) -> None:
        """Raise ConfigError where a backbone is not for a task's samples, or these are longer than it takes."""
        ...

    def check_backbone(self, task: Any, model: ModelConfig) -> None:
        """Read a backbone's weights and tokenizer. Raises BackboneError where they are damaged or don't fit."""
        ...

    def tokenizer(self, task: Any, model: ModelConfig) -> Any:
        """The backbone's tokenizer, compared with the backbone. Raises BackboneError where they don't fit."""
        ...

    def read(self, task: Any, split: str, source: str | Path | None) -> Any:
        """The labelled samples of one split, from a folder or the hub. Raises DataError."""
        ...

    def prepare(self, examples: Any, task: Any, model: ModelConfig, tokenizer: Any, cache: Path) -> PreparedRows:
        """Tokenise or decode samples, once, into a file of the folder `cache`. Raises DataError."""
        ...

    def problem(
        self,
        task: Any,
        model: ModelConfig,
        rows: str = "",
        exits: ExitConfig | None = None,
        splits: Splits = (),
    ) -> Problem:
        """The task as the trainer has it; without a file of `rows` only its model can be asked for."""
        ...

    def footprint(self, task: Any, model: ModelConfig) -> Footprint:
        """What an estimate of memory needs. Raises BackboneError, ConfigError."""
        ...

    def save(self, trained: Any, model: ModelConfig, tokenizer: Any, folder: Path) -> None:
        """Write a trained model and what it takes to use it."""
        ...

    def load(self, folder: Path) -> tuple[Any, Any]:
        """A saved model in evaluation mode, and its tokenizer. Raises CheckpointError, ConfigError, BackboneError."""
        ...

    def encode(self, model: Any, tokenizer: Any, examples: Any, path: Path) -> PreparedRows:
        """Tokenise or decode samples as a saved model takes them, into the file `path`. Raises DataError."""
        ...

    def answers(
        self,
        model: Any,
        tokenizer: Any,
        source: Any,
        columns: Sequence[str],
        *,
        criterion: Any,
        runtime: Any,
        batch_size: int,
        progress: Progress = iter,
    ) -> tuple[tuple[str, ...], Iterator[dict[str, Any]]]:
        """Predict the samples of a file, or of a stream's lines, one after the other.

        Args:
            model: A saved model.
            tokenizer: Its tokenizer.
            source: A path, or the lines of stdin.
            columns: Names of the columns of text; () stands for the task's own.
            criterion: The exit criterion.
            runtime: Where the model runs.
            batch_size: Samples that run through the layers together.
            progress: What shows how many samples have been read.

        Returns:
            The columns of a prediction, and the predictions in the order of the samples.

        Raises:
            ConfigError: For columns that the kind can't have.
            DataError: Whatever is wrong with a sample, with its place.
        """
        ...
