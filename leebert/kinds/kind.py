"""The interface of a kind of task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from leebert.config import ExitConfig, ModelConfig, TrainConfig
from leebert.problem import Problem, Splits
from leebert.record import Batch, SampleSet


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
        prediction_columns: Keys of a prediction, in their order.
    """

    @property
    def name(self) -> str: ...
    @property
    def model_type(self) -> str: ...
    @property
    def served(self) -> bool: ...
    @property
    def prediction_columns(self) -> tuple[str, ...]: ...

    def grouped(self, task: Any, group_by: Any) -> Any:
        """Return the task with another grouping of its samples.

        Args:
            task: The task.
            group_by: Text columns, `containing` or `none`.

        Returns:
            The task with this `group_by`.

        Raises:
            ConfigError: The task cannot be grouped in this way.
        """
        ...

    def check_model(self, task: Any, model: ModelConfig) -> None:
        """Refuse a model that does not fit the task, without loading its weights.

        Args:
            task: The task.
            model: The model's configuration.

        Raises:
            ConfigError: The backbone is of another kind, or `max_length` exceeds its positions.
        """
        ...

    def check_files(
        self, task: Any, model: ModelConfig | None, source: str | Path | None, split: str = "train"
    ) -> None:
        """Check that the folder of the backbone and the file of a split exist; loads neither torch nor data.

        Args:
            task: The task.
            model: The model's configuration; None: not checked.
            source: The folder of the data; None: the hub, or the task's files.
            split: The split.

        Raises:
            ConfigError: The backbone is of another kind.
            BackboneError: The backbone's folder or package is missing.
            DataError: The folder or the file of the data is missing.
        """
        ...

    def check_backbone(self, task: Any, model: ModelConfig) -> None:
        """Load the backbone's weights and tokenizer.

        Args:
            task: The task.
            model: The model's configuration.

        Raises:
            BackboneError: They are damaged or do not match.
        """
        ...

    def tokenizer(self, task: Any, model: ModelConfig) -> Any:
        """Load the backbone's tokenizer.

        Args:
            task: The task.
            model: The model's configuration.

        Returns:
            The tokenizer; None for images.

        Raises:
            BackboneError: It does not match the backbone.
        """
        ...

    def read(self, task: Any, split: str, source: str | Path | None) -> Any:
        """Read the labelled samples of one split.

        Args:
            task: The task.
            split: Name of the split.
            source: The folder of the data; None: the hub, or the task's files.

        Returns:
            The samples, in the order of the file.

        Raises:
            DataError: A file is missing or invalid; the message names the place.
        """
        ...

    def prepare(self, examples: Any, task: Any, model: ModelConfig, tokenizer: Any, cache: Path) -> PreparedRows:
        """Tokenise or decode samples into a file, or open that file.

        Args:
            examples: The samples.
            task: The task.
            model: The model's configuration.
            tokenizer: The backbone's tokenizer; None for images.
            cache: The folder of the file.

        Returns:
            The samples, mapped from the file.

        Raises:
            DataError: A sample is invalid.
        """
        ...

    def problem(
        self,
        task: Any,
        model: ModelConfig,
        rows: str = "",
        exits: ExitConfig | None = None,
        splits: Splits = (),
    ) -> Problem:
        """Make the training problem.

        Args:
            task: The task.
            model: The model's configuration.
            rows: File of :meth:`prepare` with the training samples; empty if only the model is needed.
            exits: The model's exit criterion; None: its default.
            splits: (name, file of :meth:`prepare`) of each split to evaluate.

        Returns:
            Samples, metric, model factory and splits.
        """
        ...

    def footprint(self, task: Any, model: ModelConfig) -> Footprint:
        """Return the input of a memory estimate.

        Args:
            task: The task.
            model: The model's configuration.

        Raises:
            BackboneError: The backbone's configuration cannot be read.
            ConfigError: The backbone is of another kind.
        """
        ...

    def save(self, trained: Any, model: ModelConfig, tokenizer: Any, folder: Path) -> None:
        """Save a trained model with its tokenizer.

        Args:
            trained: The model.
            model: Its configuration.
            tokenizer: Its tokenizer; None for images.
            folder: The folder to write.
        """
        ...

    def load(self, folder: Path) -> tuple[Any, Any]:
        """Load a saved model.

        Args:
            folder: The model's folder.

        Returns:
            The model in evaluation mode, and its tokenizer (None for images).

        Raises:
            CheckpointError: The folder is damaged, or model and tokenizer do not match.
            ConfigError: The exit criterion in config.json is invalid.
            BackboneError: The tokenizer cannot be loaded.
        """
        ...

    def encode(self, model: Any, tokenizer: Any, examples: Any, path: Path) -> PreparedRows:
        """Tokenise or decode samples for a saved model.

        Args:
            model: The saved model.
            tokenizer: Its tokenizer; None for images.
            examples: The samples.
            path: The file to write.

        Returns:
            The samples, mapped from the file.

        Raises:
            DataError: A sample is invalid.
        """
        ...

    def window(self, batch_size: int) -> int:
        """Return the most samples that are predicted together, of which each forward pass takes `batch_size`."""
        ...

    def weight(self, sample: Any) -> int:
        """Return the characters or bytes of a sample of :meth:`inputs`."""
        ...

    def inputs(self, config: Any, source: Any, columns: Sequence[str]) -> Iterator[Any]:
        """Read the samples of a file, or of a stream's lines, for prediction.

        Args:
            config: The configuration of the saved model.
            source: A path, or the lines of stdin.
            columns: Names of the text columns; (): those of the task.

        Yields:
            The samples in order; they can be pickled.

        Raises:
            ConfigError: The kind has no text columns.
            DataError: A sample is invalid; the message names its place.
        """
        ...

    def predict(
        self, model: Any, tokenizer: Any, samples: Sequence[Any], *, criterion: Any, runtime: Any, batch_size: int
    ) -> list[dict[str, Any]]:
        """Predict samples of :meth:`inputs`.

        Args:
            model: A saved model.
            tokenizer: Its tokenizer.
            samples: The samples.
            criterion: The exit criterion.
            runtime: Device and precision.
            batch_size: Samples per forward pass.

        Returns:
            A prediction with the keys `prediction_columns` for each sample, in order.

        Raises:
            DataError: A sample is invalid; the message names its place.
        """
        ...
