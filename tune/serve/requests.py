"""Reading requests: from a body in MLflow's format to texts and the exit criterion that was asked for, within limits."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from leebert.data.texts import is_text
from leebert.errors import LeebertError, nearest

#: Parameters of a request that choose its exit criterion, as `leebert.exported` and docs/serving.md name them.
CHOICES = ("criterion", "threshold", "patience", "speed_up", "max_loss", "latency")

#: All parameters of a request. The server forms its own batches: it accepts `batch_size` of MLflow's clients, without effect.
PARAMETERS = (*CHOICES, "truncate", "batch_size")

#: Keys under which MLflow's clients send rows.
RECORDS = ("dataframe_records", "instances", "inputs")
SPLIT = "dataframe_split"

_SHOWN = 60  # characters of a value in a message


class Refusal(LeebertError):
    """A request that is answered by an error.

    Args:
        status: The HTTP status.
        message: What is wrong, where, and what to do.
        retry_after: Seconds after which the client may try again; None: the same request fails again.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after

    @property
    def body(self) -> bytes:
        """The body of the answer, in the form of MLflow's errors."""
        return error_body(self.status, str(self))


def error_body(status: int, message: str) -> bytes:
    """Format an error as MLflow's server does: `{"error_code": …, "message": …}`."""
    code = {
        400: "BAD_REQUEST", 404: "ENDPOINT_NOT_FOUND", 429: "REQUEST_LIMIT_EXCEEDED", 503: "TEMPORARILY_UNAVAILABLE",
        500: "INTERNAL_ERROR",
    }.get(status, "INVALID_PARAMETER_VALUE")  # fmt: skip
    return json.dumps({"error_code": code, "message": message}, ensure_ascii=False).encode(errors="replace")


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a server, so that no client can exhaust its memory or its time.

    Attributes:
        body_bytes: Largest body of a request.
        texts: Most rows of a request.
        characters: Most characters of a text; its tokens are limited by the model.
        waiting: Most rows of ordinary requests that wait in a replica, and of large ones.
        wait_ms: Longest expected wait of an accepted request; beyond it, requests are refused with status 429.
        batch: Most rows of a batch.
        connections: Most connections of clients.
    """

    body_bytes: int = 1 << 20
    texts: int = 1000
    characters: int = 20_000
    waiting: int = 10_000
    wait_ms: float = 1000.0
    batch: int = 32
    connections: int = 12_000


@dataclasses.dataclass(frozen=True)
class Request:
    """A valid request.

    Attributes:
        texts: The texts of each row.
        choice: The values of :data:`CHOICES` that it sets; empty: the server chooses by the load.
        truncate: Whether texts that are too long are cut.
    """

    texts: list[tuple[str, ...]]
    choice: Mapping[str, Any]
    truncate: bool


def check_content_type(value: str) -> None:
    """Refuse a body that is not declared as JSON."""
    if value.split(";", 1)[0].strip().lower() != "application/json":
        shown = _short(value) if value else "none"
        raise Refusal(415, f"content type {shown}: send the request as application/json")


def read_request(body: bytes, columns: Sequence[Sequence[str]], limits: Limits) -> Request:
    """Read the body of a request.

    Args:
        body: The body, JSON in MLflow's format.
        columns: Of each text column the accepted names, the preferred one first.
        limits: The server's limits.

    Raises:
        Refusal: The body is no valid request, or exceeds a limit.
    """
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise Refusal(422, f"the body is {_kind(values)}: send an object with {RECORDS[0]}, and params if needed")
    for key in values:
        if key not in (*RECORDS, SPLIT, "params"):
            raise Refusal(
                422, f"unknown key {_short(key)}{nearest(key, (*RECORDS, SPLIT, 'params'))}; {_format(columns)}"
            )
    choice, truncate = _params(values.get("params"))
    return Request(_texts(values, columns, limits), choice, truncate)


def _params(params: Any) -> tuple[dict[str, Any], bool]:
    """The parameters that choose the exit criterion, and whether to truncate."""
    if params is None:
        return {}, False
    if not isinstance(params, dict):
        raise Refusal(422, f'params is {_kind(params)}: should be an object such as {{"max_loss": 0.5}}')
    for name in params:
        if name not in PARAMETERS:
            raise Refusal(
                422,
                f"unknown parameter {_short(name)}{nearest(name, PARAMETERS)}; the parameters are {', '.join(PARAMETERS)}",
            )
    values = {name: value for name, value in params.items() if value is not None}
    for name in ("threshold", "speed_up", "max_loss", "latency"):
        if name in values and not _is_number(values[name]):
            raise Refusal(422, f"params: {name}: {_short(values[name])} should be a finite number")
    for name in ("patience", "batch_size"):
        if name in values and (type(values[name]) is not int or values[name] < 1):
            raise Refusal(422, f"params: {name}: {_short(values[name])} should be a whole number of at least 1")
    if not isinstance(values.get("criterion", ""), str):
        raise Refusal(422, f"params: criterion: {_short(values['criterion'])} should be the name of an exit criterion")
    truncate = values.get("truncate", False)
    if not isinstance(truncate, bool):
        raise Refusal(422, f"params: truncate: {_short(truncate)} should be true or false")
    return {name: values[name] for name in CHOICES if name in values}, truncate


def _texts(values: Mapping[str, Any], columns: Sequence[Sequence[str]], limits: Limits) -> list[tuple[str, ...]]:
    present = [key for key in (*RECORDS, SPLIT) if key in values]
    if len(present) != 1:
        shown = " and ".join(present) or "no rows"
        raise Refusal(422, f"the body has {shown}; {_format(columns)}")
    records = _split_records(values[SPLIT]) if present == [SPLIT] else values[present[0]]
    if not isinstance(records, list):
        raise Refusal(422, f"{present[0]} is {_kind(records)}: should be a list of rows; {_format(columns)}")
    if len(records) > limits.texts:
        raise Refusal(
            413, f"{len(records)} rows: the server takes at most {limits.texts} per request; send several requests"
        )
    return [
        tuple(_text(record, row, names, limits.characters) for names in columns) for row, record in enumerate(records)
    ]


def _split_records(split: Any) -> list[dict[str, Any]]:
    """Turn pandas' orientation `split` into records."""
    if not (isinstance(split, dict) and isinstance(split.get("columns"), list) and isinstance(split.get("data"), list)):
        raise Refusal(422, f"{SPLIT}: should be an object with the lists columns and data")
    for row, data in enumerate(split["data"]):
        if not isinstance(data, list) or len(data) != len(split["columns"]):
            raise Refusal(
                422, f"{SPLIT}: row {row}: should be a list of {len(split['columns'])} values, one per column"
            )
    return [dict(zip(map(str, split["columns"]), data, strict=True)) for data in split["data"]]


def _text(record: Any, row: int, names: Sequence[str], characters: int) -> str:
    """The text of one column of a row."""
    if isinstance(record, str) and len(names):
        record = {names[0]: record}
    if not isinstance(record, dict):
        raise Refusal(422, f"row {row} is {_kind(record)}: should be an object with the column {names[0]}")
    present = [name for name in names if name in record]
    if len(present) != 1:
        problem = (
            f"columns {' and '.join(present)} name the same text" if present else f"no column {' or '.join(names)}"
        )
        raise Refusal(422, f"row {row}: {problem}; its columns are {_short(', '.join(map(str, record)) or 'none')}")
    value = record[present[0]]
    if not is_text(value):
        raise Refusal(422, f"row {row}, column {present[0]}: {_short(value)} should be a text that is not empty")
    if len(value) > characters:
        raise Refusal(
            422,
            f"row {row}, column {present[0]}: {len(value)} characters, and the server takes {characters}; shorten it",
        )
    return str(value)


def _format(columns: Sequence[Sequence[str]]) -> str:
    record = ", ".join(f'"{names[0]}": "…"' for names in columns)
    return f'send {{"{RECORDS[0]}": [{{{record}}}]}}'


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return {dict: "an object", list: "a list", str: "a text", bool: "true or false"}.get(type(value), "a number")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    text = json.dumps(text, ensure_ascii=False) if isinstance(value, str) else text
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
