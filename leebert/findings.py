"""Errors of a configuration, called findings: each with its dotted key, its value and what was expected."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails

from leebert.errors import nearest
from leebert.methods import owner_of

_SHOWN = 80

#: Dotted prefix → the valid keys below it; None: any key.
Keys = Mapping[str, Sequence[str] | None]


class KeyList(Sequence[str]):
    """Valid keys, of which those that plugins add are listed only if a key is none of the others.

    Args:
        own: The keys that need no plugin.
        make: Lists all keys, `own` included.
    """

    def __init__(self, own: Sequence[str], make: Callable[[], Sequence[str]]) -> None:
        self._own, self._make = own, make

    @functools.cached_property
    def _all(self) -> Sequence[str]:
        return self._make()

    def __contains__(self, key: object) -> bool:
        return key in self._own or key in self._all

    def __getitem__(self, index: Any) -> Any:
        return self._all[index]

    def __len__(self) -> int:
        return len(self._all)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One error: the dotted key, the value as shown, and what was expected."""

    key: str
    value: str
    expected: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.key, self.value, self.expected)))

    def under(self, parent: str) -> Finding:
        """Return the finding with the key below `parent`."""
        return dataclasses.replace(self, key=dotted(parent, self.key))

    def line(self, where: str) -> str:
        """Return ``file: key: value: what was expected``."""
        return f"{where}: {self}"


class Findings(ValueError):
    """Several findings in one exception, since a validator stops at the first exception."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(map(str, self.findings)))


def lines(findings: Iterable[Finding], where: str, sources: Mapping[str, str] | None = None) -> list[str]:
    """Write findings as the lines of an error.

    Args:
        findings: The errors.
        where: The file that holds the values.
        sources: Dotted key → the option that set it, which is named instead of the file; the last one wins.
    """
    return [finding.line(_source(finding.key, sources or {}) or where) for finding in findings]


def _source(key: str, sources: Mapping[str, str]) -> str | None:
    """Return the option that set a dotted key, or one above it."""
    matching = [source for other, source in sources.items() if key == other or key.startswith(f"{other}.")]
    return matching[-1] if matching else None


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


def keys_below(model: type[BaseModel], prefix: str = "") -> dict[str, Sequence[str] | None]:
    """Return the keys below each dotted prefix; None below a mapping, which takes any.

    A model whose keys are not its fields lists them by `keys()`.
    """
    listed = getattr(model, "keys", None)
    fields = tuple(model.model_fields)
    keys: dict[str, Sequence[str] | None] = {prefix: KeyList(fields, listed) if listed else fields}
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys |= keys_below(kind, dotted(prefix, name))
            elif get_origin(kind) is dict:
                keys[dotted(prefix, name)] = None
    return keys


def findings_of(error: ValidationError, keys: Keys, inside: str = "") -> list[Finding]:
    """Convert an error of pydantic to findings.

    Args:
        error: The error.
        keys: The valid keys below each dotted prefix (:func:`keys_below`).
        inside: The key of the validated model within the file.
    """
    return [finding for details in error.errors() for finding in _of_details(details, keys, inside)]


def _of_details(details: Any, keys: Keys, inside: str) -> list[Finding]:
    *parents, last = [str(part) for part in details["loc"]] or [""]
    key, value = dotted(*parents, last), shown(details["input"])
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, Findings):
        return [finding.under(key) for finding in cause.findings]
    if details["type"] == "extra_forbidden":
        valid = keys.get(dotted(inside, *parents)) or ()
        if last in valid and (owner := owner_of(last)):
            return [Finding(key, value, f"only {owner} has this option")]
        return [Finding(key, value, f"unknown key{nearest(last, valid)}")]
    if details["type"] == "missing":
        return [Finding(key, "missing", "is required")]
    return [Finding(key, value if key else "", message(details))]


def again(error: ValidationError) -> list[InitErrorDetails]:
    """Convert the errors of one validation so that another can raise them."""
    errors = []
    for details in error.errors():
        copied = InitErrorDetails(type=details["type"], loc=details["loc"], input=details["input"])
        errors.append({**copied, "ctx": details["ctx"]} if "ctx" in details else copied)
    return errors
