"""The interface of a kind of task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from leebert.config import ExitConfig, ModelConfig, TrainConfig
from leebert.problem import Problem, Splits
from leebert.record import Batch, SampleSet

#: Wraps an iteration, such as with a progress bar.
Progress = Callable[[Iterable[Any]], Iterable[Any]]


@dataclasses.dataclass(frozen=True)
class Footprint:
    """The input of a memory estimate for a training step; needs neither pretrained weights nor data.

    Attributes:
        build: Builds the model with new weights.
        length: Tokens of a text, or pixels of an image's side.
        batch: Makes a labelled batch from (B, length).
    """

    build: Callable[[TrainConfig], Any]
    length: int
    batch: Callable[[int, int], Batch]


class PreparedRows(SampleSet, Protocol):
    """Samples that are tokenised or decoded into a file and mapped from it; `truncated` counts those that were truncated."""

    @property
    def path(self) -> str: ...
    @property
    def truncated(self) -> int: ...


class Kind(Protocol):
    """Everything that differs between tasks of texts and of images.

    Attributes:
        name: The plural in messages, such as `texts`.
        model_type: `model_type` in the config.json of saved models.
        served: Whether :mod:`leebert.serving` serves its models.
    """

    @property
    def name(self) -> str: ...
    @property
    def model_type(self) -> str: ...
    @property
    def served(self) -> bool: ...

    def grouped(self, task: Any, group_by: Any) -> Any:
        """Return the task with another `group_by`. Raises ConfigError if the task can't be grouped that way."""
        ...

    def check_model(self, task: Any, model: ModelConfig) -> None:
        """Raise ConfigError if the backbone is of another kind, or `max_length` exceeds its positions."""
        ...

    def check_backbone(self, task: Any, model: ModelConfig) -> None:
        """Load the backbone's weights and tokenizer. Raises BackboneError if they are damaged or don't match."""
        ...

    def tokenizer(self, task: Any, model: ModelConfig) -> Any:
        """Load the backbone's tokenizer; None for images. Raises BackboneError if it doesn't match the backbone."""
        ...

    def read(self, task: Any, split: str, source: str | Path | None) -> Any:
        """Read the labelled samples of one split from a folder or the hub. Raises DataError."""
        ...

    def prepare(self, examples: Any, task: Any, model: ModelConfig, tokenizer: Any, cache: Path) -> PreparedRows:
        """Tokenise or decode samples into a file of the folder `cache`, or open that file. Raises DataError."""
        ...

    def problem(
        self,
        task: Any,
        model: ModelConfig,
        rows: str = "",
        exits: ExitConfig | None = None,
        splits: Splits = (),
    ) -> Problem:
        """Make the training problem; `rows` and `splits` are files of :meth:`prepare`, and only the model needs none."""
        ...

    def footprint(self, task: Any, model: ModelConfig) -> Footprint:
        """Return the input of a memory estimate. Raises BackboneError, ConfigError."""
        ...

    def save(self, trained: Any, model: ModelConfig, tokenizer: Any, folder: Path) -> None:
        """Save a trained model with its tokenizer."""
        ...

    def load(self, folder: Path) -> tuple[Any, Any]:
        """Load a saved model in evaluation mode, and its tokenizer. Raises CheckpointError, ConfigError, BackboneError."""
        ...

    def encode(self, model: Any, tokenizer: Any, examples: Any, path: Path) -> PreparedRows:
        """Tokenise or decode samples for a saved model into the file `path`. Raises DataError."""
        ...

    def predictions(
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
            columns: Names of the text columns; (): those of the task.
            criterion: The exit criterion.
            runtime: Device and precision.
            batch_size: Samples per forward pass.
            progress: Wraps the iteration over samples.

        Returns:
            The keys of a prediction, and the predictions in the order of the samples.

        Raises:
            ConfigError: The kind has no text columns.
            DataError: A sample is invalid; the message names its place.
        """
        ...
