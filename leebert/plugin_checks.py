"""What every plugin of another package must hold, whatever its kind: a name, fields of the declared types, a colour."""

from __future__ import annotations

import collections.abc
import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin

#: What a name may be: it is a key of configurations, of commands and of MLflow.
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")

_WORDS: Mapping[Any, str] = {
    str: "a text", bool: "True or False", int: "a whole number", float: "a number", type(None): "None",
    collections.abc.Callable: "a function", collections.abc.Mapping: "a mapping", frozenset: "a frozenset",
}  # fmt: skip


def check_plugin(name: str, plugin: Any, kind: type) -> None:
    """Refuse what can't stand under a name.

    Args:
        name: The name under which it is found.
        plugin: What is found there.
        kind: The class of the registry's plugins, a dataclass with a field `name`, and perhaps `colour`.

    Raises:
        TypeError: It is of another class, or a field is of another type than declared.
        ValueError: Its name is another or no name, or its colour no colour.
    """
    if not isinstance(plugin, kind):
        raise TypeError(f"it should be a {kind.__module__}.{kind.__name__}, not {type(plugin).__name__}")
    if dataclasses.is_dataclass(plugin):
        check_types(plugin)
    if getattr(plugin, "name", name) != name:
        raise ValueError(f"its own name is {plugin.name!r}; both must be the same")  # type: ignore[attr-defined]
    check_name(name)
    colour = getattr(plugin, "colour", None)
    if colour is not None and not re.fullmatch(r"#[0-9a-f]{6}", colour):
        raise ValueError(f"colour {colour!r} should be #rrggbb, in lower case")


def check_name(name: str, what: str = "name") -> None:
    """Raise ValueError for a name with other characters than small letters, digits, '-' and '_'."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{what} {name!r} should have small letters, digits, '-' and '_' only, and no '-' or '_' first"
        )


def check_types(plugin: Any) -> None:
    """Raise TypeError for the first field of a dataclass whose value is not of the declared type."""
    hints = typing.get_type_hints(type(plugin))
    for field in dataclasses.fields(plugin):
        value = getattr(plugin, field.name)
        if not _is(value, hints[field.name]):
            raise TypeError(f"{field.name} should be {_words(hints[field.name])}, not {value!r}")


def _is(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is(value, arg) for arg in args)
    tests: dict[Any, Callable[[], bool]] = {
        Any: lambda: True,
        None: lambda: value is None,
        float: lambda: isinstance(value, int | float) and not isinstance(value, bool),
        int: lambda: isinstance(value, int) and not isinstance(value, bool),
        Literal: lambda: value in args,
        type: lambda: isinstance(value, type) and issubclass(value, args[0]),
        collections.abc.Callable: lambda: callable(value),
        collections.abc.Mapping: lambda: (
            isinstance(value, Mapping) and all(_is(k, args[0]) and _is(v, args[1]) for k, v in value.items())
        ),
        frozenset: lambda: isinstance(value, frozenset) and all(_is(item, args[0]) for item in value),
    }
    test = tests.get(origin or hint)
    return test() if test else isinstance(value, origin or hint)


def _words(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_words, args))
    if origin is Literal:
        return f"one of {', '.join(args)}"
    if origin is type:
        return f"a subclass of {args[0].__module__}.{args[0].__name__}"
    if origin in (collections.abc.Mapping, frozenset):
        return f"{_WORDS[origin]} of {_words(args[-1]).removeprefix('a ')}"
    return _WORDS.get(origin or hint) or f"a {getattr(hint, '__name__', hint)}"
