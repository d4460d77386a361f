"""Requests for predictions as MLflow's clients send them, a table of texts with parameters, and the columns of the answer."""

from __future__ import annotations

import logging
import numbers
from collections.abc import Mapping
from typing import Any

from leebert.data.readers import Columns
from leebert.data.texts import bad_text, is_text
from leebert.errors import ConfigError, nearest

log = logging.getLogger(__name__)

#: Parameters of a request: name → (MLflow's type, default, description). None: not set.
PARAMETERS: dict[str, tuple[str, Any, str]] = {
    "criterion": ("string", None, "the exit criterion; the model's own by default"),
    "strategy": ("string", None, "deprecated, the former name of criterion"),
    "threshold": ("double", None, "its threshold; by default the model's own, for the model's own criterion"),
    "patience": ("long", None, "number of consecutive exits, for criteria that count them; default as for threshold"),
    "speed_up": ("double", None, "target layer speed-up, layers / mean exit layer, instead of a threshold"),
    "max_loss": ("double", None, "largest drop in score against the full model, in points, instead of a threshold"),
    "latency": ("double", None, "largest mean time of one sample, in milliseconds as measured at the export, instead of a threshold"),
    "truncate": ("boolean", False, "truncate texts that are too long, instead of refusing them"),
    "batch_size": ("long", 32, "samples per forward pass"),
}  # fmt: skip

#: Columns of a prediction with MLflow's types; `row` is the row's number in the request, from 0.
PREDICTION = {"row": "long", "label": "string", "probability": "double", "exit_layer": "long", "layers_saved": "long"}


def parameters(params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Check the parameters of a request.

    Args:
        params: Values of :data:`PARAMETERS`; None or a missing key: the default.

    Returns:
        The value of every parameter, `strategy` as `criterion`.

    Raises:
        ConfigError: A parameter is unknown, or a value is of another type.
    """
    params = params or {}
    for name in params:
        if name not in PARAMETERS:
            names = ", ".join(PARAMETERS)
            raise ConfigError(f"unknown parameter {name!r}{nearest(name, PARAMETERS)}; the parameters are {names}")
    values = {name: value for name, value in params.items() if value is not None}
    if "strategy" in values:
        log.warning("parameter strategy is deprecated and will be removed in the next release: use criterion")
        if "criterion" in values:
            raise ConfigError("strategy is the former name of criterion: leave strategy out")
        values["criterion"] = values.pop("strategy")
    request = {name: default for name, (_, default, _) in PARAMETERS.items()} | values
    if not isinstance(size := request["batch_size"], int) or size < 1:
        raise ConfigError(f"batch_size {size}: should be a whole number of at least 1")
    for name in ("speed_up", "max_loss", "latency"):
        if request[name] is not None and not isinstance(request[name], numbers.Real):
            raise ConfigError(f"{name} {request[name]!r}: should be a number")
    return request


def texts_of_table(data: Any, columns: Columns) -> list[tuple[str, ...]]:
    """Read the texts of a request.

    Args:
        data: A pandas DataFrame.
        columns: Its columns of text.

    Returns:
        The texts of each row.

    Raises:
        DataError: A column is missing, or a value is no text or empty.
    """
    import pandas as pd

    header = [str(name) for name in data.columns]
    positions = columns.find(header, "the request")
    names = tuple(header[i] for i in positions)
    texts = []
    for number, values in enumerate(zip(*(data.iloc[:, i] for i in positions), strict=True)):
        for name, value in zip(names, values, strict=True):
            if not is_text(value):
                # pandas reads a null of the request as NaN or NA.
                null = pd.api.types.is_scalar(value) and pd.isna(value)
                raise bad_text(f"row {number}", name, None if null else value)
        texts.append(values)
    return texts
