"""Former names of public arguments and attributes, which still work in this release and warn."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that a name is deprecated.

    Args:
        old: The former name, as users write it.
        new: The name that replaces it.
        stacklevel: The frame that the warning names; 3 is the caller of the caller.
    """
    warnings.warn(f"{old} is deprecated: use {new}", DeprecationWarning, stacklevel=stacklevel)


def renamed_arguments(**names: str) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """Let a function accept former names of keyword arguments, with a warning.

    Args:
        **names: The present name by the former one.
    """

    def decorate(function: Callable[P, Result]) -> Callable[P, Result]:
        @functools.wraps(function)
        def accepting(*args: P.args, **kwargs: P.kwargs) -> Result:
            for old, new in names.items():
                if old in kwargs:
                    warn_renamed(f"{function.__name__}: argument {old}", new)
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return accepting

    return decorate
