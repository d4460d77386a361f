"""The names of methods, options and configurations in tables and charts, and the colours of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leebert.methods import METHODS

#: Colours of runs that compare two methods, in turn.
PAIR_COLOURS = ("#5b3cc4", "#00855f", "#c2185b", "#6b6b6b")

#: The paper's symbols of options.
SYMBOLS = {"cycle_length": "C", "lr_theta": "λ1", "lr_omega": "λ2", "batch_size": "batch"}

_ABSENT = object()


def algorithm_label(algorithm: str) -> str:
    """Return the label of a method; one that is not installed here keeps its name."""
    method = METHODS.find(algorithm)
    return algorithm if method is None else method.label


def algorithm_colour(algorithm: str) -> str | None:
    """Return the colour of a method's runs; None: MLflow chooses."""
    method = METHODS.find(algorithm)
    return None if method is None else method.colour


def present(summary: str) -> str:
    """Return a summary's present label; earlier versions used the name of methods without a label."""
    return " ".join(algorithm_label(word) for word in summary.split(" "))


def option_text(option: str, value: Any) -> str:
    """Return an option with its value, by its symbol in the paper if it has one: `C=4`, `λ1=0.0001`."""
    return (
        f"{SYMBOLS.get(option, option)}={value:g}"
        if isinstance(value, float)
        else f"{SYMBOLS.get(option, option)}={value}"
    )


def differing(configurations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the options that have several values among configurations, in their order.

    An option that only some of them have counts if its values, or they without it, could not be told apart otherwise.
    """
    options = list(dict.fromkeys(option for values in configurations for option in values))
    values_of = {o: [values[o] for values in configurations if o in values] for o in options}
    several = [o for o in options if any(value != values_of[o][0] for value in values_of[o])]
    names = {tuple((o, values.get(o, _ABSENT)) for o in several) for values in configurations}
    distinct = {tuple((o, values.get(o, _ABSENT)) for o in options) for values in configurations}
    return (
        several
        if len(names) == len(distinct)
        else [o for o in options if o in several or len(values_of[o]) < len(configurations)]
    )


def short_names(configurations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name configurations by what differs between them: `CLO-v2 C=4`, `BLO`; one alone, or equal ones, by all options.

    Args:
        configurations: The values of each.

    Returns:
        Their names, in their order.
    """
    options = differing(configurations) or list(dict.fromkeys(o for values in configurations for o in values))
    return [_name(values, [option for option in options if option in values]) for values in configurations]


def _name(values: Mapping[str, Any], options: Sequence[str]) -> str:
    method = [algorithm_label(str(values["algorithm"]))] if "algorithm" in options else []
    named = [*method, *(option_text(option, values[option]) for option in options if option != "algorithm")]
    return " ".join(named) or algorithm_label(str(values.get("algorithm", "")))


def searched_name(values: Mapping[str, Any], searched: Sequence[str]) -> str:
    """Name a configuration of a sweep by the options that the sweep searches, so that its name stays the same.

    Args:
        values: The configuration's values.
        searched: Names of the searched options, `algorithm` included if there are several methods.
    """
    return _name(values, [option for option in values if option in searched])
