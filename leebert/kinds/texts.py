"""Texts: pretrained encoders with a tokenizer."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from leebert.backbone_files import locate
from leebert.config import ExitConfig, ModelConfig, Pooling, Precision, TrainConfig
from leebert.data.tasks import Task, get_task
from leebert.data.texts import characters
from leebert.errors import CheckpointError, ConfigError
from leebert.images.backbones import is_network
from leebert.kinds.kind import Footprint
from leebert.problem import Problem, Splits, TextProblem
from leebert.windows import ROWS

if TYPE_CHECKING:
    from leebert.data.readers import Row
    from leebert.data.sources import Examples
    from leebert.data.tokens import TokenisedSplit
    from leebert.model import LeebertForSequenceClassification


@dataclasses.dataclass(frozen=True)
class Texts:
    """Tasks of one text or a pair of texts (:class:`leebert.kinds.kind.Kind`)."""

    name: str = "texts"
    model_type: str = "leebert"
    served: bool = True

    def grouped(self, task: Task, group_by: Any) -> Task:
        if group_by == "containing" and len(task.text_columns) != 1:
            raise ConfigError("data.group_by: 'containing' is for tasks with one text column")
        if group_by not in ("containing", "none"):
            wrong = [c for c in group_by if c not in task.text_columns]
            if isinstance(group_by, str) or wrong:
                raise ConfigError(
                    f"data.group_by: {group_by!r} is not 'containing', 'none' or a list of {', '.join(task.text_columns)}"
                )
        return dataclasses.replace(task, group_by=() if group_by == "none" else group_by)

    def check_files(
        self, task: Task, model: ModelConfig | None, source: str | Path | None, split: str = "train"
    ) -> None:
        from leebert.data.sources import check_files

        if model is not None:
            _refuse_network(task, model)
            locate(model.backbone)
        check_files(task, split, source)

    def check_model(self, task: Task, model: ModelConfig) -> None:
        _refuse_network(task, model)
        from leebert.compatibility import limits_of

        limits_of(model.backbone).check_length(model.max_length)

    def check_backbone(self, task: Task, model: ModelConfig) -> None:
        from leebert.backbone import load_encoder

        load_encoder(model.backbone)
        self.tokenizer(task, model)

    def tokenizer(self, task: Task, model: ModelConfig) -> Any:
        from leebert.backbone import load_tokenizer
        from leebert.compatibility import check_tokenizer, limits_of

        tokenizer = load_tokenizer(model.backbone)
        pairs = len(task.text_columns) == 2
        check_tokenizer(tokenizer, limits_of(model.backbone), pairs=pairs, pooling=model.pooling)
        return tokenizer

    def read(self, task: Task, split: str, source: str | Path | None) -> Examples:
        from leebert.data.sources import read_split

        return read_split(task, split, source)

    def prepare(
        self, examples: Examples, task: Task, model: ModelConfig, tokenizer: Any, cache: Path
    ) -> TokenisedSplit:
        from leebert.compatibility import limits_of
        from leebert.data import tokens

        rows = tokens.cached(examples, tokenizer, model.max_length, cache)
        limits_of(model.backbone).check_rows(rows.tokens, examples.source, rows.row_ids)
        return rows

    def problem(
        self,
        task: Task,
        model: ModelConfig,
        rows: str = "",
        exits: ExitConfig | None = None,
        splits: Splits = (),
    ) -> Problem:
        exits = exits or ExitConfig()
        return TextProblem(rows, model.backbone, task.label_names, task.metric, model.pooling, exits, splits)

    def footprint(self, task: Task, model: ModelConfig) -> Footprint:
        from transformers import AutoModel

        from leebert.backbone import load_config
        from leebert.memory import text_batch
        from leebert.model import build_model

        config = load_config(model.backbone)

        def build(train: TrainConfig) -> Any:
            return build_model(AutoModel.from_config(config), task.label_names, pooling=model.pooling, train=train)

        return Footprint(build, model.max_length, text_batch)

    def save(self, trained: Any, model: ModelConfig, tokenizer: Any, folder: Path) -> None:
        from leebert.compatibility import vocabulary_digest

        trained.config.max_length = model.max_length
        trained.config.vocabulary = vocabulary_digest(tokenizer)
        trained.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def load(self, folder: Path) -> tuple[Any, Any]:
        return load_text_model(folder)

    def encode(self, model: Any, tokenizer: Any, examples: Examples, path: Path) -> TokenisedSplit:
        from leebert.compatibility import limits_of_encoder
        from leebert.data.tokens import tokenise

        rows = tokenise(examples, tokenizer, model.config.max_length, path)
        limits_of_encoder(model.backbone).check_rows(rows.tokens, examples.source, rows.row_ids)
        return rows

    @property
    def prediction_columns(self) -> tuple[str, ...]:
        from leebert.predict import COLUMNS

        return COLUMNS

    def window(self, batch_size: int) -> int:
        return max(ROWS, batch_size)

    def weight(self, sample: Row) -> int:
        return characters(sample)

    def inputs(self, config: Any, source: Any, columns: Sequence[str]) -> Iterator[Row]:
        from leebert.predict import texts_for

        return texts_for(config.task, source, columns)

    def predict(
        self, model: Any, tokenizer: Any, samples: Sequence[Row], *, criterion: Any, runtime: Any, batch_size: int
    ) -> list[dict[str, Any]]:
        from leebert.predict import predict_texts

        return predict_texts(model, tokenizer, samples, criterion, runtime, batch_size, samples[0].number)


def load_text_model(folder: str | Path) -> tuple[LeebertForSequenceClassification, Any]:
    """Load a saved model of texts in evaluation mode, and its tokenizer.

    Args:
        folder: The saved model.

    Raises:
        CheckpointError: The folder is damaged, or its tokenizer does not match the model.
        ConfigError: The model's `max_length` exceeds its positions.
        BackboneError: There is no tokenizer.
    """
    from leebert.backbone import load_tokenizer
    from leebert.model import load_model

    model = load_model(folder).eval()
    tokenizer = load_tokenizer(str(folder))
    check_saved(model, tokenizer, str(folder))
    return model, tokenizer


def check_saved(model: LeebertForSequenceClassification, tokenizer: Any, folder: str) -> None:
    """Check that a saved model and its tokenizer match.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        folder: Their folder, for messages.

    Raises:
        CheckpointError: They do not match; the message lists all differences and what to do.
        ConfigError: `max_length` exceeds the model's positions.
    """
    from leebert.compatibility import begins_with_special_token, limits_of_encoder, vocabulary_digest

    limits = limits_of_encoder(model.backbone, f"the model in {folder}")
    limits.check_length(model.config.max_length, "its config.json")
    _check_values(model, folder)
    task = model.config.task
    pairs = len(get_task(task).text_columns) == 2 if task else False
    if clauses := limits.mismatches(tokenizer, pairs=pairs):
        raise CheckpointError(f"{limits.name}: {'; '.join(clauses)}; restore the tokenizer that was saved with it")
    if model.config.vocabulary not in (None, vocabulary_digest(tokenizer)):
        raise CheckpointError(
            f"{limits.name}: its tokenizer has another vocabulary than the one that the model was saved with; restore that "
            "tokenizer, or remove `vocabulary` from config.json if the change is intended"
        )
    if model.config.pooling != "mean" and not begins_with_special_token(tokenizer):
        warnings.warn(
            f"{limits.name}: its tokenizer puts no special token such as [CLS] before a text, and its exits read the "
            "first token; check that it is the tokenizer that was saved with it",
            stacklevel=3,
        )


def _check_values(model: LeebertForSequenceClassification, folder: str) -> None:
    """Raise CheckpointError for values in config.json that no training writes."""
    config, file = model.config, Path(folder) / "config.json"
    for key, allowed in (("pooling", get_args(Pooling)), ("precision", get_args(Precision))):
        if (value := getattr(config, key)) not in allowed:
            raise CheckpointError(f"{file}: {key}: {value!r}: should be one of {', '.join(allowed)}")
    if config.pooling == "pooler" and getattr(model.backbone, "pooler", None) is None:
        raise CheckpointError(
            f"{file}: pooling: 'pooler': the encoder has no pooler; restore the value that training wrote"
        )
    if not isinstance(config.max_length, int) or config.max_length < 4:
        raise CheckpointError(f"{file}: max_length: {config.max_length!r}: should be a whole number of at least 4")


def _refuse_network(task: Task, model: ModelConfig) -> None:
    """Raise ConfigError for a network of images."""
    if is_network(model.backbone):
        raise ConfigError(
            f"backbone {model.backbone}: is a network for images, and {task.name} has texts; use an encoder"
        )
