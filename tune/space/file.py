"""Reading a search space from YAML with overrides; one exception lists all errors of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from leebert.data.tasks import OwnTask
from leebert.errors import ConfigError
from leebert.findings import Finding, KeyList, Keys, findings_of, keys_below, lines, shown
from leebert.overrides import SET, key_of, override
from leebert.yaml import parse_document, read_text
from tune.space.sections import expand_name
from tune.space.shipped import find_space
from tune.space.spec import SweepSpec
from tune.space.values import STANDARD_OPTIONS, ValueList, options

#: Other names of keys, such as `algorithm: clo-v2`.
_ALIASES = {"algorithm": "algorithms"}

#: Values for required keys that are missing or wrong, so that the checks of the others can still run.
_STAND_INS: dict[str, Any] = {"task": "mrpc", "backbone": "?", "space": {"batch_size": ValueList((32,))}}


def load_space(path: str | Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """Read a sweep from a file.

    Args:
        path: The file, or the name of a search space of the package.
        overrides: ``key=value`` each, with dotted keys and YAML values.

    Raises:
        ConfigError: The file has errors; the message has a line ``file: key: value: what was expected`` for each.
    """
    file = find_space(path)
    document = parse_document(read_text(file), str(file))
    if not isinstance(document.content, dict):
        raise ConfigError(f"{file}: {shown(document.content)}: should be a mapping, see search_spaces/README.md")
    return _spec(document.content, overrides, str(file), [f"{file}: {key}" for key in document.duplicates])


def make_space(raw: dict[str, Any], overrides: Sequence[str], where: str) -> SweepSpec:
    """Make a search space from a mapping, as :func:`load_space` does from a file.

    Args:
        raw: The keys and values; changed in place.
        overrides: Assignments `key=value`, as of `--set`.
        where: The name of the mapping in errors.

    Returns:
        The validated space.
    """
    return _spec(raw, overrides, where, [])


def _spec(raw: dict[str, Any], overrides: Sequence[str], where: str, errors: list[str]) -> SweepSpec:
    for alias, key in _ALIASES.items():
        if alias in raw:
            value = raw.pop(alias)
            if key in raw:
                finding = Finding(alias, shown(value), f"is also given as `{key}`: keep one of the two")
                errors.append(finding.line(where))
            else:
                raw[key] = value
    expand = {"searcher": expand_name, "pruner": expand_name}
    keys = _keys()
    errors += lines(override(raw, overrides, keys, aliases=_ALIASES, expand=expand), SET)
    spec, findings = _validate(raw, keys)
    errors += lines(findings, where, {canonical(one.partition("=")[0]): SET for one in overrides})
    if spec is None or errors:
        raise ConfigError("\n".join(errors))
    return spec


def _validate(raw: Mapping[str, Any], keys: Keys) -> tuple[SweepSpec | None, list[Finding]]:
    try:
        return SweepSpec.model_validate(raw), []
    except ValidationError as error:
        findings = findings_of(error, keys)
        broken = frozenset(str(details["loc"][0]) for details in error.errors() if details["loc"])
    if broken:  # the checks across keys did not run: run those of the valid keys
        sound = {key: value for key, value in raw.items() if str(key) not in broken}
        try:
            SweepSpec.model_validate({**_STAND_INS, **sound}, context={"broken": broken})
        except ValidationError as error:
            findings += findings_of(error, keys)
    return None, findings


def _keys() -> Keys:
    """The valid keys below each dotted prefix."""
    of_training = KeyList(STANDARD_OPTIONS, options)
    return {**keys_below(SweepSpec), "space": of_training, "training": of_training, **keys_below(OwnTask, "task")}


def canonical(path: str) -> str:
    """Return the dotted path of `--set` with the specification's name of its key."""
    return key_of(path, _ALIASES)
