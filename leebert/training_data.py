"""The training split of a task: read, reduced to the part that is asked for, and prepared for the trainer."""

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
    """Where the rows come from, and which of them count."""

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

    examples: the labelled samples that train, of `split_rows` in the split. rows: the same for the trainer, mapped from
    a file. tokenizer: None where the kind has none.
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
        """How many samples were cut at the model's maximal length."""
        return self.rows.truncated

    def problem(self, exits: ExitConfig | None = None, splits: Splits = ()) -> Problem:
        """The task as the trainer has it; `splits` are files of :meth:`split` by their names."""
        return kind_of(self.task).problem(self.task, self.model, self.path, exits, splits)

    def split(self, name: str, source: str | None, cache: Path) -> tuple[str, str]:
        """Prepare another split of the task in the same way: its file, and the fingerprint of its samples."""
        kind = kind_of(self.task)
        examples = kind.read(self.task, name, source)
        return kind.prepare(examples, self.task, self.model, self.tokenizer, cache).path, examples.fingerprint()

    def save(self, model: Any, out: Path) -> None:
        """Write a trained model, and what it takes to use it, into a folder."""
        kind_of(self.task).save(model, self.model, self.tokenizer, out)


@dataclasses.dataclass(frozen=True)
class TrainingExamples:
    """The training split of a task as it was read (:class:`TrainingData`)."""

    task: AnyTask
    model: ModelConfig
    examples: Any
    split_rows: int
    tokenizer: Any

    def prepare(self, cache: Path) -> TrainingData:
        """Tokenise or decode the samples, once, into the folder `cache`."""
        rows = kind_of(self.task).prepare(self.examples, self.task, self.model, self.tokenizer, cache)
        return TrainingData(self.task, self.model, self.examples, self.split_rows, self.tokenizer, rows)


def effective_task(config_task: str | dict[str, Any], group_by: Any) -> AnyTask:
    """The task of a configuration, with the grouping that the data section asks for. Raises ConfigError."""
    task = any_task(config_task)
    return task if group_by is None else kind_of(task).grouped(task, group_by)


def load_training_data(task: AnyTask, data: DataConfig, model: ModelConfig, cache: Path) -> TrainingData:
    """Read the training split (and nothing else), and tokenise or decode it once into `cache`."""
    return read_training_examples(task, data, model).prepare(cache)


def read_training_examples(task: AnyTask, data: DataConfig, model: ModelConfig) -> TrainingExamples:
    """Read the training split, and no other, or the subset of it that is asked for.

    Raises:
        ConfigError: The backbone is not for the task's samples.
        BackboneError: The backbone's tokenizer does not fit it.
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
            raise DataError(f"subset of {data.subset.rows} rows: {examples.source} has only {len(examples)}")
        examples = subset(examples, data.subset.rows, data.subset.seed)
    return TrainingExamples(task, model, examples, split_rows, tokenizer)
