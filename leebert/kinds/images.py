"""Images: residual networks trained from scratch, without a tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leebert.config import ExitConfig, ModelConfig, TrainConfig
from leebert.errors import ConfigError
from leebert.images.backbones import check_network
from leebert.images.problem import ImageProblem
from leebert.images.tasks import ImageTask
from leebert.kinds.kind import Footprint
from leebert.problem import Problem, Splits

if TYPE_CHECKING:
    from leebert.images.arrays import ImageRows
    from leebert.images.predict import Image
    from leebert.images.sources import ImageExamples


@dataclasses.dataclass(frozen=True)
class Images:
    """Tasks of square colour images (:class:`leebert.kinds.kind.Kind`)."""

    name: str = "images"
    model_type: str = "leebert-resnet"
    served: bool = False

    def grouped(self, task: ImageTask, group_by: Any) -> ImageTask:
        if group_by != "none":
            raise ConfigError(
                f"data.group_by: {group_by!r}: the samples of {task.name} are images, which have no text columns"
            )
        return task

    def check_files(
        self, task: ImageTask, model: ModelConfig | None, source: str | Path | None, split: str = "train"
    ) -> None:
        from leebert.images.sources import check_files

        if model is not None:
            check_network(task.name, model)
        check_files(task, split, source)

    def check_model(self, task: ImageTask, model: ModelConfig) -> None:
        check_network(task.name, model)

    def check_backbone(self, task: ImageTask, model: ModelConfig) -> None:
        check_network(task.name, model)  # a network has no files to check

    def tokenizer(self, task: ImageTask, model: ModelConfig) -> None:
        return None

    def read(self, task: ImageTask, split: str, source: str | Path | None) -> ImageExamples:
        from leebert.images.sources import read_images

        return read_images(task, split, source)

    def prepare(
        self, examples: ImageExamples, task: ImageTask, model: ModelConfig, tokenizer: None, cache: Path
    ) -> ImageRows:
        from leebert.images import arrays

        return arrays.cached(examples, task.size, cache)

    def problem(
        self,
        task: ImageTask,
        model: ModelConfig,
        rows: str = "",
        exits: ExitConfig | None = None,
        splits: Splits = (),
    ) -> Problem:
        exits = exits or ExitConfig()
        return ImageProblem(rows, model.backbone, task.label_names, task.metric, task.mean, task.std, exits, splits)

    def footprint(self, task: ImageTask, model: ModelConfig) -> Footprint:
        from leebert.images.resnet import build_resnet
        from leebert.memory import image_batch

        def build(train: TrainConfig) -> Any:
            return build_resnet(model.backbone, task.label_names, mean=task.mean, std=task.std, train=train)

        return Footprint(build, task.size, image_batch)

    def save(self, trained: Any, model: ModelConfig, tokenizer: None, folder: Path) -> None:
        trained.save_pretrained(folder)

    def load(self, folder: Path) -> tuple[Any, None]:
        from leebert.images.resnet import load_resnet

        return load_resnet(folder).eval(), None

    def encode(self, model: Any, tokenizer: None, examples: ImageExamples, path: Path) -> ImageRows:
        from leebert.images.arrays import decode_all

        return decode_all(examples, model.config.image_size, path)

    @property
    def prediction_columns(self) -> tuple[str, ...]:
        from leebert.images.predict import COLUMNS

        return COLUMNS

    def window(self, batch_size: int) -> int:
        return batch_size  # all images have the same size, so there is nothing to sort

    def weight(self, sample: Image) -> int:
        return len(sample.file)

    def inputs(self, config: Any, source: Any, columns: Sequence[str]) -> Iterator[Image]:
        from leebert.images.predict import read_folder_or_file, read_list

        if columns:
            raise ConfigError(f"--text {columns[0]}: applies to texts only, and this model takes images; omit it")
        return read_folder_or_file(source) if isinstance(source, Path) else read_list(source, "stdin")

    def predict(
        self, model: Any, tokenizer: None, samples: Sequence[Image], *, criterion: Any, runtime: Any, batch_size: int
    ) -> list[dict[str, Any]]:
        from leebert.images.predict import predict_images

        return predict_images(model, samples, criterion, runtime)
