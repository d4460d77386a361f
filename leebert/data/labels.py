"""Which class a label means, whatever kind of file or value it comes from.

CSV holds "1.0", Parquet 1.0 or 1, JSON true: one rule gives them one class. A label is compared with the classes'
names as they are written, then by its value as a number, and only where no name is a number may it be a class's id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

#: Truth values count as numbers: a table that lost its types holds 1 and 0 for them.
_TRUTH = {"true": Decimal(1), "false": Decimal(0)}


def is_missing(value: Any) -> bool:
    """Whether there is no label: null, NaN (which is how tables of floats hold null) or an empty text."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


def as_written(value: Any) -> str:
    """A label as text: what a CSV file holds for it."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else str(value)


def numbers(value: Any) -> tuple[Decimal, ...]:
    """The finite numbers that a label may stand for, the most exact first; none for a word.

    A float that was stored with fewer bits (0.1 in a float32 column is 0.10000000149) is also the shorter number that
    rounds to it.
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
    found = dict.fromkeys(_finite(repr(value)))
    with np.errstate(all="ignore"):
        for narrow in (np.float32(value), np.float16(value)):
            if float(narrow) == value:
                found |= dict.fromkeys(_finite(str(narrow)))
    return tuple(found)


def _finite(text: str) -> tuple[Decimal, ...]:
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        return ()
    return (number,) if number.is_finite() else ()


class LabelIds:
    """The ids of a task's classes, by their labels."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._written = {name: i for i, name in enumerate(self.names)}
        self._values: dict[Decimal, list[int]] = {}
        for i, name in enumerate(self.names):
            for number in numbers(name):
                self._values.setdefault(number, []).append(i)
        self._known: dict[tuple[type, Any], int | None] = {}

    @property
    def by_id(self) -> bool:
        """Whether a class may be given by its id: not where a name is a number or a truth value itself."""
        return not self._values

    def of(self, value: Any) -> int | None:
        """The id of a label's class; None for a label of no class, or a number that several names are equal to."""
        if is_missing(value):
            return None
        key = (type(value), value)
        try:
            return self._known[key]
        except KeyError:
            self._known[key] = found = self._find(value)
            return found
        except TypeError:  # a list, say
            return None

    def _find(self, value: Any) -> int | None:
        if isinstance(value, str):
            for text in (value, value.strip()):
                if text in self._written:
                    return self._written[text]
        values = numbers(value)
        if not values:  # a date, say
            return self._written.get(as_written(value))
        for number in values:
            same = self._values.get(number, [])
            if same:  # "1.0" beside "1" can be told apart by how they are written, but not by their value
                return same[0] if len(same) == 1 else None
            if self.by_id and not _is_truth(value) and 0 <= number < len(self.names) and number == int(number):
                return int(number)
        return None


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool | np.bool_) or (isinstance(value, str) and value.strip().lower() in _TRUTH)
