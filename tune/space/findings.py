"""Errors of a file, called findings: each with its dotted key, its value and what was expected."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from leebert.errors import nearest

_SHOWN = 80


@dataclasses.dataclass(frozen=True)
class Finding:
    """One error: the dotted key, the value as shown, and what was expected."""

    key: str
    value: str
    expected: str

    def under(self, parent: str) -> Finding:
        """Return the finding with the key below `parent`."""
        return dataclasses.replace(self, key=".".join(part for part in (parent, self.key) if part))

    def line(self, where: str) -> str:
        """Return ``file: key: value: what was expected``."""
        return f"{where}: {self.key}: {self.value}: {self.expected}"


class Findings(ValueError):
    """Several findings in one exception, since a validator stops at the first exception."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(": ".join(filter(None, (f.key, f.value, f.expected))) for f in self.findings))


def shown(value: Any) -> str:
    """Return a value for a message: true, false and null as in YAML, else its repr, shortened if long."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def message(details: Mapping[str, Any]) -> str:
    """Return what was expected, from one error of pydantic; for a misspelt name with the nearest valid one."""
    text = str(details["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    if details["type"] == "literal_error":
        names = str(details["ctx"]["expected"]).replace(" or ", ", ").split(", ")
        text += nearest(str(details["input"]), [name.strip("'") for name in names])
    return text


def dotted(*parts: str) -> str:
    """Join the non-empty parts of a key by dots."""
    return ".".join(part for part in parts if part)


def keys_below(model: type[BaseModel], prefix: str = "") -> dict[str, tuple[str, ...]]:
    """Return the keys below each dotted prefix."""
    keys = {prefix: tuple(model.model_fields)}
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys |= keys_below(kind, dotted(prefix, name))
    return keys


def of_details(details: Any, keys: Mapping[str, Sequence[str]], inside: str = "") -> list[Finding]:
    """Convert one error of pydantic to findings.

    Args:
        details: The error.
        keys: The valid keys below each dotted prefix (:func:`keys_below`).
        inside: The key of the validated model within the file.
    """
    *parents, last = [str(part) for part in details["loc"]] or [""]
    key, value = dotted(*parents, last), shown(details["input"])
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, Findings):
        return [finding.under(key) for finding in cause.findings]
    if details["type"] == "extra_forbidden":
        return [Finding(key, value, f"unknown key{nearest(last, keys.get(dotted(inside, *parents), ()))}")]
    if details["type"] == "missing":
        return [Finding(key, "missing", "is required")]
    return [Finding(key, value, message(details))]
