"""Read the training split of a task, reduce it to the configured subset, and prepare it for the trainer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from pydantic import Field

from leebert.config import ExitConfig, Frozen, ModelConfig, Subset
from leebert.data.tasks import AnyTask, any_task
from leebert.errors import DataError
from leebert.kinds import kind_of
from leebert.kinds.kind import PreparedRows
from leebert.problem import Problem, Splits


class DataConfig(Frozen):
    """The source of the samples, and their subset."""

    dir: str | None = Field(
        None,
        description="A folder in GLUE's release layout, or of Parquet files for images; None: the Hugging Face hub, or the task's files.",
    )
    subset: Subset | None = Field(None, description="A stratified part of the training split.")
    group_by: tuple[str, ...] | str | None = Field(
        None, description="Columns, 'containing' or 'none'; None: the task's own groups."
    )


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The training split of a task, tokenised or decoded.

    Attributes:
        task: The task.
        model: The model section of the configuration.
        examples: The labelled training samples.
        split_rows: Number of samples in the whole split.
        tokenizer: The tokenizer; None for images.
        rows: The training samples for the trainer, mapped from a file.
    """

    task: AnyTask
    model: ModelConfig
    examples: Any
    split_rows: int
    tokenizer: Any
    rows: PreparedRows

    @property
    def path(self) -> str:
        """The file of `rows`."""
        return self.rows.path

    @property
    def truncated_rows(self) -> int:
        """Number of samples that were truncated to `max_length`."""
        return self.rows.truncated

    def problem(self, exits: ExitConfig | None = None, splits: Splits = ()) -> Problem:
        """Make the training problem.

        Args:
            exits: The model's exit criterion; None: its default.
            splits: (name, file of :meth:`split`) of each split to evaluate.

        Returns:
            Samples, metric, model factory and splits.
        """
        return kind_of(self.task).problem(self.task, self.model, self.path, exits, splits)

    def split(self, name: str, source: str | None, cache: Path) -> tuple[str, str]:
        """Prepare another split of the task.

        Args:
            name: Name of the split.
            source: The folder of the data; None: the hub, or the task's files.
            cache: The folder of the prepared file.

        Returns:
            The prepared file, and the fingerprint of its samples.
        """
        kind = kind_of(self.task)
        examples = kind.read(self.task, name, source)
        return kind.prepare(examples, self.task, self.model, self.tokenizer, cache).path, examples.fingerprint()

    def save(self, model: Any, out: Path) -> None:
        """Save a trained model with its tokenizer in a folder."""
        kind_of(self.task).save(model, self.model, self.tokenizer, out)


@dataclasses.dataclass(frozen=True)
class TrainingExamples:
    """The training split of a task before tokenising (:class:`TrainingData`).

    Attributes:
        task: The task.
        model: Backbone and length.
        examples: The samples, or a subset of them.
        split_rows: Samples of the whole training split.
        tokenizer: The backbone's tokenizer; None for images.
    """

    task: AnyTask
    model: ModelConfig
    examples: Any
    split_rows: int
    tokenizer: Any

    def prepare(self, cache: Path) -> TrainingData:
        """Tokenise or decode the samples into the folder `cache`."""
        rows = kind_of(self.task).prepare(self.examples, self.task, self.model, self.tokenizer, cache)
        return TrainingData(self.task, self.model, self.examples, self.split_rows, self.tokenizer, rows)


def effective_task(config_task: str | dict[str, Any], group_by: Any) -> AnyTask:
    """Return the task of a configuration, with the configured grouping.

    Args:
        config_task: The name of a built-in task, or the declaration of one.
        group_by: Text columns, `containing` or `none`; None: the task's own grouping.

    Raises:
        ConfigError: The task is unknown or invalid, or cannot be grouped in this way.
    """
    task = any_task(config_task)
    return task if group_by is None else kind_of(task).grouped(task, group_by)


def check_files(task: AnyTask, data: DataConfig, model: ModelConfig) -> None:
    """Check that backbone and training split exist where they are local: within a second, before torch is loaded.

    Args:
        task: The task.
        data: The data section.
        model: The model section.

    Raises:
        LeebertError: A folder, package or file is missing; the message names it.
    """
    kind_of(task).check_files(task, model, data.dir)


def load_training_data(task: AnyTask, data: DataConfig, model: ModelConfig, cache: Path) -> TrainingData:
    """Read the training split only, and tokenise or decode it.

    Args:
        task: The task.
        data: Folder and subset.
        model: Backbone and length.
        cache: The folder of the prepared file.

    Returns:
        The task's training data.
    """
    return read_training_examples(task, data, model).prepare(cache)


def read_training_examples(task: AnyTask, data: DataConfig, model: ModelConfig) -> TrainingExamples:
    """Read the training split only, or the configured subset of it.

    Args:
        task: The task.
        data: Source and subset.
        model: The model section of the configuration.

    Raises:
        ConfigError: The backbone is of another kind than the task.
        BackboneError: The backbone's tokenizer does not match it.
        DataError: The split can't be read, or is smaller than the subset.
    """
    from leebert.data.sources import subset

    kind = kind_of(task)
    kind.check_model(task, model)
    tokenizer = kind.tokenizer(task, model)
    examples = kind.read(task, "train", data.dir)
    split_rows = len(examples)
    if data.subset:
        if data.subset.rows > len(examples):
            raise DataError(f"subset of {data.subset.rows} samples: {examples.source} has only {len(examples)}")
        examples = subset(examples, data.subset.rows, data.subset.seed)
    return TrainingExamples(task, model, examples, split_rows, tokenizer)
