"""Load a registered model in MLflow from this module and the logged folder, without pickles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leebert.errors import LeebertError
from leebert.exported.manifest import is_exported

#: The exported form of a logged model, a folder within the saved model's.
EXPORTED = "exported"


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> Any:
    """Load the model of a saved folder (MLflow's hook): its exported form if it has one, else in PyTorch.

    `model_config` may set `threads` of an exported model, `device` and `precision` of one in PyTorch.
    """
    exported = Path(path) / EXPORTED
    if is_exported(exported):
        from leebert.exported.serving import ServedExport

        return Answering(ServedExport(exported, **(model_config or {})))
    from leebert.serving import Served

    return Answering(Served(Path(path), **(model_config or {})))


class Answering:
    """A served model with errors as MLflow's exceptions: of others MLflow's server shows only a traceback.

    Args:
        served: A :class:`leebert.serving.Served` or :class:`leebert.exported.serving.ServedExport`.
    """

    def __init__(self, served: Any) -> None:
        self.served = served

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Predict label, probability and exit layer for each input; see :meth:`leebert.serving.Served.predict`."""
        from mlflow.exceptions import MlflowException

        try:
            return self.served.predict(model_input, params)
        except LeebertError as error:
            raise MlflowException.invalid_parameter_value(f"error: {error}") from None
