"""Predict windows of long files and streams with an exported model of texts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from leebert.data.readers import Row
from leebert.data.texts import characters, texts_of
from leebert.errors import ConfigError
from leebert.exported.model import ExportedModel
from leebert.windows import ROWS


class ExportedPredictor:
    """An exported model, as :class:`leebert.predictor.Predictor` describes it.

    Args:
        folder: The exported model.
        criterion: The exit criterion; None: the model's own.
        threshold: Its threshold; None: the model's own, or the criterion's default.
        patience: Its second parameter; None: as for the threshold.
        batch_size: Samples per batch.
        threads: Threads of ONNX Runtime; None: one per core that this process may use.
        device: auto or cpu.
        precision: None; the export has determined it.

    Raises:
        CheckpointError: A file of the folder is missing, altered or damaged.
        ConfigError: An option does not fit the model.
    """

    #: Keys of a prediction, in their order.
    columns = ("row", "label", "probability", "exit_layer")

    #: Most samples of a window.
    rows = ROWS

    def __init__(
        self,
        folder: Path,
        *,
        criterion: str | None = None,
        threshold: float | None = None,
        patience: int | None = None,
        batch_size: int = 64,
        threads: int | None = None,
        device: str = "auto",
        precision: str | None = None,
    ) -> None:
        if device not in ("auto", "cpu"):
            raise ConfigError(f"--device {device}: an exported model runs on the CPU; leave it out")
        if precision is not None:
            raise ConfigError(f"--precision {precision}: the export has determined it; leave it out, or export again")
        self.model = ExportedModel.load(folder, threads=threads or _cores())
        if self.model.manifest.kind != "texts":
            raise ConfigError(
                f"{folder}: an exported model of images; predict with the model that it was exported from"
            )
        self.exits = self.model.choose(criterion=criterion, threshold=threshold, patience=patience)
        self.model.criterion(self.exits)
        self.batch_size = batch_size

    def inputs(self, source: Any, columns: Sequence[str]) -> Iterator[Row]:
        """Read the texts of a file or of a stream's lines.

        Args:
            source: A path, or the lines of stdin.
            columns: Names of the text columns; (): those of the task.
        """
        return texts_of(self.model.manifest.text_columns, source, columns)

    @property
    def weight(self) -> Callable[[Row], int]:
        """Counts the characters of a row."""
        return characters

    def predict(self, samples: Sequence[Row]) -> list[dict[str, Any]]:
        """Predict a window of rows; texts that are too long are truncated.

        Args:
            samples: The rows.
        """
        texts = [row.values for row in samples]
        predicted = self.model.predict(texts, self.exits, truncate=True, batch_size=self.batch_size)
        return [
            {"row": row.number, "label": one.label, "probability": one.probability, "exit_layer": one.exit_layer}
            for row, one in zip(samples, predicted, strict=True)
        ]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
