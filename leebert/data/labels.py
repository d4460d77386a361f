"""From labels as files hold them to class ids.

CSV holds "1.0", Parquet 1.0 or 1, JSON true, and all mean the same class. A label is compared with the classes' names as
text, then as a number. Only if no name is a number can a label be a class id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

#: Booleans count as numbers: tables without types hold 1 and 0 for them.
_TRUTH = {"true": Decimal(1), "false": Decimal(0)}


def is_missing(value: Any) -> bool:
    """Whether a label is missing: null, NaN (null in a column of floats) or an empty text."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


def as_written(value: Any) -> str:
    """Write a label as text, as a CSV file holds it."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else str(value)


def numbers(value: Any) -> tuple[Decimal, ...]:
    """Return the finite numbers that a label can mean, the most exact first; empty for text that is no number.

    A float stored with fewer bits (0.1 in a float32 column is 0.10000000149) also means the shorter number that rounds to it.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        if value.strip().lower() in _TRUTH:
            return (_TRUTH[value.strip().lower()],)
        return _finite(value) if "_" not in value else ()
    if isinstance(value, bool | int | Decimal):
        return _finite(str(int(value)) if isinstance(value, bool) else str(value))
    if not isinstance(value, float) or not math.isfinite(value):
        return ()
    candidates = dict.fromkeys(_finite(repr(value)))
    with np.errstate(all="ignore"):
        for narrow in (np.float32(value), np.float16(value)):
            if float(narrow) == value:
                candidates |= dict.fromkeys(_finite(str(narrow)))
    return tuple(candidates)


def _finite(text: str) -> tuple[Decimal, ...]:
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        return ()
    return (number,) if number.is_finite() else ()


class LabelIds:
    """Class ids by label.

    Args:
        names: The K class names in the order of their ids.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._written = {name: i for i, name in enumerate(self.names)}
        self._values: dict[Decimal, list[int]] = {}
        for i, name in enumerate(self.names):
            for number in numbers(name):
                self._values.setdefault(number, []).append(i)
        self._cache: dict[tuple[type, Any], int | None] = {}

    @property
    def by_id(self) -> bool:
        """Whether labels can be class ids; False if a class name is a number or a boolean."""
        return not self._values

    def of(self, value: Any) -> int | None:
        """Return the class id of a label; None if it matches no class, or equals several names as a number."""
        if is_missing(value):
            return None
        key = (type(value), value)
        try:
            return self._cache[key]
        except KeyError:
            self._cache[key] = class_id = self._find(value)
            return class_id
        except TypeError:  # unhashable, such as a list
            return None

    def _find(self, value: Any) -> int | None:
        if isinstance(value, str):
            for text in (value, value.strip()):
                if text in self._written:
                    return self._written[text]
        values = numbers(value)
        if not values:  # no number, such as a date
            return self._written.get(as_written(value))
        for number in values:
            ids = self._values.get(number, [])
            if ids:  # names "1.0" and "1" differ as text, but not as numbers
                return ids[0] if len(ids) == 1 else None
            if self.by_id and not _is_truth(value) and 0 <= number < len(self.names) and number == int(number):
                return int(number)
        return None


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool | np.bool_) or (isinstance(value, str) and value.strip().lower() in _TRUTH)
