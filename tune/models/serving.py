"""Load a registered model in MLflow from this module and the saved folder, without pickles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leebert.errors import LeebertError


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> Any:
    """Load the model of a saved folder (MLflow's hook); `model_config` may set `device` and `precision`."""
    from leebert.serving import Served

    return Answering(Served(Path(path), **(model_config or {})))


class Answering:
    """A served model with errors as MLflow's exceptions: of others MLflow's server shows only a traceback."""

    def __init__(self, served: Any) -> None:
        self.served = served

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Predict label, probability and exit layer for each input; see :meth:`leebert.serving.Served.predict`."""
        from mlflow.exceptions import MlflowException

        try:
            return self.served.predict(model_input, params)
        except LeebertError as error:
            raise MlflowException.invalid_parameter_value(f"error: {error}") from None
