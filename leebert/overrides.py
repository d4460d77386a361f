"""`--set key=value`: overrides of a configuration or search space by dotted keys."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from leebert.errors import ConfigError
from leebert.findings import Finding, Keys, dotted, shown
from leebert.yaml import parse_yaml

#: The option, as errors name it.
SET = "--set"

#: The least likeness (`difflib`) of a key that is suggested.
_SIMILAR = 0.6


def override(
    values: dict[str, Any],
    assignments: Sequence[str],
    keys: Keys,
    *,
    aliases: Mapping[str, str] | None = None,
    expand: Mapping[str, Callable[[Any], Any]] | None = None,
) -> list[Finding]:
    """Write ``key=value`` assignments into a configuration.

    Args:
        values: The configuration; it is changed.
        assignments: ``key=value`` each, with dotted keys and YAML values.
        keys: The valid keys below each dotted prefix.
        aliases: Other names of keys → the names in `keys`.
        expand: Key → function that turns the short form of its value into a mapping.

    Returns:
        What is wrong with the assignments; errors name :data:`SET` as their source. Wrong ones are not written.
    """
    findings: list[Finding] = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        path = key_of(key, aliases)
        problem = _unknown(path, keys) if equals else "should be key=value"
        if not problem:
            try:
                put(values, path, parse_yaml(text, ""), expand)
            except ConfigError as error:
                problem = "is not YAML: " + "; ".join(line.lstrip(":, ") for line in str(error).splitlines())
            except TypeError as error:
                problem = str(error)
        if problem:
            findings.append(Finding("", shown(assignment), problem))
    return findings


def key_of(key: str, aliases: Mapping[str, str] | None = None) -> str:
    """Return the dotted key of an assignment, as the configuration names it."""
    return (aliases or {}).get(key.strip(), key.strip())


def put(
    values: dict[str, Any], path: str, value: Any, expand: Mapping[str, Callable[[Any], Any]] | None = None
) -> None:
    """Write a value at a dotted key.

    Args:
        values: Nested mappings, changed in place.
        path: The dotted key.
        value: The value.
        expand: First key → what makes a mapping of its short form.

    Raises:
        TypeError: A key above the last one holds no mapping.
    """
    *parents, last = path.split(".")
    target = values
    for depth, part in enumerate(parents):
        below = target.get(part)
        if below is None:
            below = {}
        elif expand and not depth and part in expand:
            below = expand[part](below)
        if not isinstance(below, dict):
            raise TypeError(f"`{'.'.join(parents[: depth + 1])}` is {shown(below)}, not a mapping with keys")
        target[part] = below
        target = below
    target[last] = value


def _unknown(path: str, keys: Keys) -> str:
    """Return why a dotted path is not a key; empty if it is."""
    parts = path.split(".")
    for depth, part in enumerate(parts):
        prefix = ".".join(parts[:depth])
        if prefix not in keys:
            return f"unknown key: `{prefix}` has no keys below it"
        valid = keys[prefix]
        if valid is None:
            return ""
        if part not in valid:
            rest = parts[depth + 1 :]
            in_section = _in_section(dotted(prefix, part), rest, keys) if rest else ""
            return f"unknown key{in_section or _did_you_mean(path, prefix, keys)}"
    return ""


def _in_section(section: str, rest: Sequence[str], keys: Keys) -> str:
    """Suggest the section that is spelt like a misspelt one, with the rest of the key if it is one of its keys."""
    close = difflib.get_close_matches(section, [prefix for prefix in keys if prefix], n=1, cutoff=0.6)
    if not close:
        return ""
    valid = len(rest) == 1 and rest[0] in (keys[close[0]] or ())
    return f" (did you mean '{dotted(close[0], rest[0]) if valid else close[0]}'?)"


def _did_you_mean(path: str, prefix: str, keys: Keys) -> str:
    """Suggest keys with their sections: of the given section, else of any; empty if none is similar."""
    name = path.rpartition(".")[2]
    everywhere = [dotted(section, key) for section, names in keys.items() for key in names or ()]
    within = [key for key in everywhere if prefix and key.startswith(f"{prefix}.")]
    similar = next(filter(None, (_similar(name, candidates) for candidates in (within, everywhere))), [])
    shown_keys = [f"'{key}'" for key in (similar[:1] if prefix else similar[:3])]
    return f" (did you mean {' or '.join(shown_keys)}?)" if similar else ""


def _similar(name: str, candidates: Sequence[str]) -> list[str]:
    """Return the dotted keys whose last part is the name, is spelt like it, or has it as a word, such as lr in lr_theta."""
    last = {key: key.rpartition(".")[2] for key in candidates}
    likeness = {ending: difflib.SequenceMatcher(None, ending, name).ratio() for ending in last.values()}
    if (most := max(likeness.values(), default=0.0)) >= _SIMILAR:
        return [key for key, ending in last.items() if likeness[ending] == most]
    return [key for key, ending in last.items() if name in ending.split("_")]
