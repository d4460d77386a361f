"""An exported model as MLflow serves it: a table of texts with parameters in, a table of predictions out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leebert.data.readers import Columns
from leebert.errors import ConfigError
from leebert.exported.manifest import Exits
from leebert.exported.model import ExportedModel
from leebert.request import PREDICTION, parameters, texts_of_table


class ServedExport:
    """An exported model of texts that predicts requests, from several threads at once.

    Args:
        folder: The folder that `leebert export` wrote.
        threads: Threads of ONNX Runtime for one batch.

    Raises:
        ConfigError: The model takes images.
        CheckpointError: A file of the folder is missing, altered or damaged.
    """

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        self.model = ExportedModel.load(folder, threads=threads)
        manifest = self.model.manifest
        if manifest.kind != "texts":
            raise ConfigError(f"{folder}: an exported model of images; MLflow serves models of texts")
        self.columns = Columns(manifest.text_columns, "rename it in the request")

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Predict every row of a table of texts.

        Args:
            data: A pandas DataFrame with the model's text columns.
            params: Values of :data:`leebert.request.PARAMETERS`; None or a missing key: the default.

        Returns:
            A DataFrame with the columns of :data:`leebert.request.PREDICTION` and the index of `data`; exit layers count
            from 1.

        Raises:
            DataError: A column is missing, a text is empty or, without `truncate`, too long.
            ConfigError: A parameter is unknown, or the model cannot do what it asks for.
        """
        import pandas as pd

        request = parameters(params)
        exits = self.exits(request)
        texts = texts_of_table(data, self.columns)
        predictions = self.model.predict(
            texts, exits, truncate=request["truncate"], batch_size=request["batch_size"]
        )  # fmt: skip
        rows = [
            (row, one.label, one.probability, one.exit_layer, one.layers_saved) for row, one in enumerate(predictions)
        ]
        table = pd.DataFrame(rows, columns=list(PREDICTION), index=data.index)
        return table.astype({name: "int64" for name, kind in PREDICTION.items() if kind == "long"})

    def exits(self, request: Mapping[str, Any]) -> Exits:
        """Select the exit criterion of a request; see :func:`leebert.exported.choosing.choose`.

        Args:
            request: Its parameters.
        """
        names = ("criterion", "threshold", "patience", "speed_up", "max_loss", "latency")
        return self.model.choose(**{name: request.get(name) for name in names})
