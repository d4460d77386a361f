"""The values of an option of a search space: a list or a range, each checked by its field of a training configuration."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from leebert.config import COST_ONLY, TrainConfig
from leebert.errors import nearest
from leebert.findings import Finding, Findings, message, shown
from leebert.training_options import declaring, option_names

#: The largest number of values that a range may have.
MOST_VALUES = 1_000_000

_ELSEWHERE = {"seed": "not an option of a configuration: use the key `seeds`", "algorithm": "use the key `algorithms`"}

#: The options of all methods that a space or `training` may name.
STANDARD_OPTIONS = tuple(name for name in TrainConfig.model_fields if name not in _ELSEWHERE)

Scalar = bool | int | float | str


def options() -> tuple[str, ...]:
    """Return the options that a space or `training` may name: seeds belong to runs, and methods have another key."""
    return tuple(name for name in option_names() if name not in _ELSEWHERE)


@dataclasses.dataclass(frozen=True)
class ValueList:
    """A list of distinct values, written ``[a, b]``; a single value is a list of one."""

    values: tuple[Scalar, ...]

    @property
    def count(self) -> int:
        """The number of values."""
        return len(self.values)

    def listed(self) -> tuple[Scalar, ...]:
        """Return all values, in the order of the file."""
        return self.values

    def draw(self, rng: random.Random) -> Scalar:
        """Draw one value, all with equal probability."""
        return rng.choice(self.values)

    def plain(self) -> list[Scalar]:
        """Return it as written in YAML."""
        return list(self.values)


@dataclasses.dataclass(frozen=True)
class Range:
    """Every number of an interval; only whole numbers if the option takes an integer.

    Written ``{range: [low, high]}``, with an optional `step`, or ``{log_range: [low, high]}``.

    Attributes:
        low: The smallest number.
        high: The largest number.
        step: Distance of the numbers; None: every number.
        log: Whether draws are uniform in the logarithm.
    """

    low: int | float
    high: int | float
    step: int | float | None = None
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether the option takes integers."""
        return isinstance(self.low, int)

    @property
    def count(self) -> int | None:
        """The number of values; None for a continuum."""
        step = self.step or (1 if self.whole else None)
        # With a tiny tolerance, so that 0.1 to 0.3 by 0.1 has three values although (0.3 - 0.1) / 0.1 < 2.
        return None if step is None else math.floor((self.high - self.low) / step * (1 + 1e-12) + 1e-12) + 1

    def listed(self) -> tuple[Scalar, ...] | None:
        """Return all numbers in rising order; None for a continuum."""
        return None if self.count is None else tuple(self._at(i) for i in range(self.count))

    def draw(self, rng: random.Random) -> Scalar:
        """Draw one number, uniform in the range or in its logarithm."""
        if self.log and self.whole:  # half a step beyond both ends; otherwise the ends would be drawn half as often
            drawn = round(math.exp(rng.uniform(math.log(self.low - 0.5), math.log(self.high + 0.5))))
            return min(max(drawn, int(self.low)), int(self.high))
        if self.log:
            drawn_float = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
            return min(max(drawn_float, self.low), self.high)
        return rng.uniform(self.low, self.high) if self.count is None else self._at(rng.randrange(self.count))

    def plain(self) -> dict[str, Any]:
        """Return it as written in YAML."""
        bounds = {"log_range" if self.log else "range": [self.low, self.high]}
        return bounds if self.step is None else {**bounds, "step": self.step}

    def _at(self, i: int) -> int | float:
        if self.whole:
            return int(self.low) + i * int(self.step or 1)
        return float(f"{self.low + i * (self.step or 0):.12g}")  # 0.3, not 0.30000000000000004


Values = ValueList | Range


#: The models with an option as a field: TrainConfig, or the own options of each listed method that has it.
Models = Sequence[type[BaseModel]]


def coerce(option: str, value: Any, models: Models) -> Scalar:
    """Convert a value as the fields of its option do: "1e-5" becomes a float.

    Args:
        option: Name of the option.
        value: The value, as read from a file.
        models: The configurations of the methods that use the option.

    Returns:
        The converted value.

    Raises:
        ValueError: The value is invalid; the message says what is expected.
    """
    if isinstance(value, bool) and any(kind in (int, float) for kind in _kinds(option, models)):
        raise ValueError("should be a number")  # pydantic would convert true to 1
    try:
        coerced: list[Scalar] = [getattr(model.model_validate({option: value}), option) for model in models]
    except ValidationError as error:
        raise ValueError("; ".join(message(details) for details in error.errors())) from None
    return coerced[0]


def _kinds(option: str, models: Models) -> set[Any]:
    return {model.model_fields[option].annotation for model in models}


def read_space(raw: Any, algorithms: Sequence[str] = ()) -> dict[str, Values]:
    """Read the mapping `space` of a file. Raises :class:`Findings` with all errors.

    Args:
        raw: The mapping.
        algorithms: The methods of the space, whose own options it may have.
    """
    return _read_options(raw, algorithms, _read_values)


def read_training(raw: Any, algorithms: Sequence[str] = ()) -> dict[str, Scalar]:
    """Read the mapping `training` of a file, with one value per option, as :func:`read_space`."""
    return _read_options(raw, algorithms, _read_one)


def _read_options(raw: Any, algorithms: Sequence[str], read: Any) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise Findings([Finding("", shown(raw), "should be a mapping of options to values")])
    findings: list[Finding] = []
    result: dict[str, Any] = {}
    for option, value in raw.items():
        models = declaring(option, algorithms) if isinstance(option, str) and option not in _ELSEWHERE else ()
        if not models:
            expected = _ELSEWHERE.get(option, f"unknown option{nearest(str(option), options())}")
            findings.append(Finding(str(option), shown(value), expected))
            continue
        try:
            result[option] = read(option, value, models)
        except Findings as error:
            findings += [finding.under(option) for finding in error.findings]
    if findings:
        raise Findings(findings)
    return result


def _read_one(option: str, raw: Any, models: Models) -> Scalar:
    try:
        return coerce(option, raw, models)
    except ValueError as error:
        raise Findings([Finding("", shown(raw), str(error))]) from None


def _read_values(option: str, raw: Any, models: Models) -> Values:
    if option in COST_ONLY:
        raise Findings([Finding("", shown(raw), "changes memory and speed, but no result: move it to `training`")])
    if isinstance(raw, ValueList | Range):
        return raw
    if isinstance(raw, Mapping):
        return _read_range(option, raw, models)
    return _read_list(option, raw if isinstance(raw, list | tuple) else [raw], models)


def _read_list(option: str, raw: Iterable[Any], models: Models) -> ValueList:
    findings: list[Finding] = []
    values: list[Scalar] = []
    for item in raw:
        try:
            value = coerce(option, item, models)
        except ValueError as error:
            findings.append(Finding("", shown(item), str(error)))
            continue
        if value in values:
            findings.append(Finding("", shown(item), "is in the list twice"))
        values.append(value)
    if not findings and not values:
        findings.append(Finding("", "[]", "should have at least one value"))
    if findings:
        raise Findings(findings)
    return ValueList(tuple(values))


def _read_range(option: str, raw: Mapping[str, Any], models: Models) -> Range:
    def wrong(expected: str, key: str = "", value: Any = raw) -> Findings:
        return Findings([Finding(key, shown(dict(value) if value is raw else value), expected)])

    kind, *others = _kinds(option, models)
    if others:
        raise wrong("is of another type under some of the methods and has no range: use a list")
    if kind not in (int, float):
        raise wrong("is no number and has no range: use a list")
    unknown = [key for key in raw if key not in ("range", "log_range", "step")]
    if unknown:
        close = nearest(str(unknown[0]), ("range", "log_range", "step"))
        raise wrong(f"unknown key{close}; `range`, `log_range` and `step` exist", str(unknown[0]), raw[unknown[0]])
    names = [name for name in ("range", "log_range") if name in raw]
    if len(names) != 1:
        raise wrong("should have exactly one of `range` and `log_range`")
    name = names[0]
    bounds = raw[name]
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        raise wrong("should be [lowest, highest]", name, bounds)
    if name == "log_range" and _number(bounds[0], kind) is not None and not _number(bounds[0], kind) > 0:
        raise wrong("should begin above 0, since zero has no logarithm", name, list(bounds))
    findings: list[Finding] = []
    coerced: list[Any] = []
    for bound in bounds:
        try:
            coerced.append(coerce(option, bound, models))
        except ValueError as error:
            findings.append(Finding(name, shown(bound), str(error)))
    if findings:
        raise Findings(findings)
    low, high = coerced
    if not low < high:
        raise wrong("should rise: [lowest, highest]", name, list(bounds))
    step = raw.get("step")
    if step is None:
        return _countable(Range(low, high, log=name == "log_range"), wrong)
    if name == "log_range":
        raise wrong("a `log_range` has no step: use a list", "step", step)
    number = _number(step, kind)
    if number is None or not 0 < number <= high - low:
        whole = "a whole number " if kind is int else ""
        raise wrong(f"should be {whole}above 0 and at most {high - low!r}", "step", step)
    return _countable(Range(low, high, number), wrong)


def _countable(values: Range, wrong: Callable[[str], Findings]) -> Range:
    if values.count is not None and values.count > MOST_VALUES:
        raise wrong(f"has {values.count} values: at most {MOST_VALUES}; use a larger step, or a list")
    return values


def _number(value: Any, kind: Any) -> Any:
    """Return `value` as an int or float; None if it is neither."""
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        return None
    if not math.isfinite(number) or (kind is int and number != int(number)):
        return None
    return kind(number)
