"""Predict windows of long files and streams with an exported model of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from leebert.data.readers import Row
from leebert.data.texts import characters, texts_of
from leebert.errors import ConfigError
from leebert.exported.model import ExportedModel
from leebert.numerics import cores
from leebert.predictor_options import PredictorOptions
from leebert.windows import ROWS


class ExportedPredictor:
    """An exported model, as :class:`leebert.predictor.Predictor` describes it.

    Args:
        options: The folder, and how to predict: on the CPU, in the precision of the export, and by default with one thread of
            ONNX Runtime per core that this process may use.

    Raises:
        CheckpointError: A file of the folder is missing, altered or damaged.
        ConfigError: An option does not fit the model.
    """

    #: Keys of a prediction, in their order.
    columns = ("row", "label", "probability", "exit_layer")

    #: Most samples of a window.
    rows = ROWS

    def __init__(self, options: PredictorOptions) -> None:
        if options.device not in ("auto", "cpu"):
            raise ConfigError(f"--device {options.device}: an exported model runs on the CPU; leave it out")
        if options.precision is not None:
            raise ConfigError(
                f"--precision {options.precision}: the export has determined it; leave it out, or export again"
            )
        self.model = ExportedModel.load(options.folder, threads=options.threads or cores())
        if self.model.manifest.kind != "texts":
            raise ConfigError(
                f"{options.folder}: an exported model of images; predict with the model that it was exported from"
            )
        self.exits = self.model.choose(
            criterion=options.criterion, threshold=options.threshold, patience=options.patience
        )
        self.model.criterion(self.exits)
        self.batch_size = options.batch_size

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
